"""Workdirs: whose run one holds is checked before anything is written into it."""

import contextlib
import errno
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from experiments import config as configs
from experiments.config import Config, ConfigError
from experiments.run import bad_step, pasteable, results
from experiments.run.overrides import typed
from lrnet_jax.training import checkpoints, workdir_lock
from lrnet_jax.training.atomic import spare_name, write_atomically
from lrnet_jax.training.checkpoints import DamagedCheckpointError
from lrnet_jax.training.metric_writers import METRICS

DISK_ERRORS = frozenset(
    {
        errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EIO, errno.ENOLCK,
        errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS, errno.ESTALE,
    }
)  # fmt: skip


def check_workdir(config: Config, workdir: pathlib.Path) -> None:
    """Accepts a new or empty workdir, and one that holds a run of this configuration.

    A run that failed before its first step holds nothing, so its workdir counts as new.

    Raises:
      ConfigError: it holds a run with another configuration, or files of something else.
    """
    path = workdir / configs.FILE
    if path.exists():
        if is_new(workdir):
            return
        differing = configs.differences(configs.load(path), config)
        if differing:
            raise ConfigError(
                f"{workdir} holds a run with another configuration ({'; '.join(differing)}); "
                "give another --workdir, or the same configuration to resume"
                + _fork(workdir, config)
            )
        return
    # What a run leaves that was killed in its first moments.
    ours = {workdir_lock.FILE, spare_name(path).name}
    if workdir.exists() and (
        not workdir.is_dir() or any(child.name not in ours for child in workdir.iterdir())
    ):
        if (workdir / checkpoints.FOLDER).exists():
            raise ConfigError(
                f"{workdir} holds checkpoints and no {configs.FILE}; bring that file back, or give "
                "another --workdir"
            )
        raise ConfigError(
            f"{workdir} is not empty and holds no run of lrnet_jax; give another --workdir"
        )


def _fork(workdir: pathlib.Path, config: Config) -> str:
    """How to continue a run with another configuration, where the network is the same."""
    old, new = configs.flatten(configs.load(workdir / configs.FILE)), configs.flatten(config)
    paths = [path for path in new if old[path] != new[path] and path not in configs.FREE]
    network = {path for path in paths if path == "network" or path.startswith("model.")}
    if network - configs.SAME_RESULT:
        return ""
    kept = ("recipe", "train.fork_from", "train.init_from")
    flags = [f"--config.{path}={typed(new[path])}" for path in paths if path not in kept]
    command = pasteable.command("experiments.train", [f"--fork_from={workdir}", *flags])
    return f"; to continue it with this one: {command} --workdir=NEW"


@contextlib.contextmanager
def claim_workdir(config: Config, workdir: pathlib.Path) -> Iterator[None]:
    """Locks a workdir that `check_workdir` accepts, and writes the configuration into it.

    Args:
      config: the configuration of the run.
      workdir: made if it is missing.

    Raises:
      ConfigError: the workdir cannot be made, or written to, now or later while it is locked; or
        another process has run another configuration in it since the check.
      WorkdirInUseError: another process has locked it.
    """
    path = workdir / configs.FILE
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make --workdir={workdir}: {error.strerror}; give another --workdir"
        ) from error
    try:
        with workdir_lock.lock_workdir(workdir):
            # Another process may have run here after the first check, and have ended.
            check_workdir(config, workdir)
            write_atomically(path, json.dumps(configs.to_dict(config), indent=2) + "\n")
            yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise ConfigError(
            f"cannot write to --workdir={workdir}: {error.strerror}; checkpoints before this are "
            "untouched. Make room or mend the disk, then rerun the same command to resume"
        ) from error


def is_new(workdir: pathlib.Path) -> bool:
    """Whether no run has taken a step in a workdir yet, as far as is known.

    A run records its first steps with `train.log_every`. One that is killed before has left nothing
    that a rerun would use.
    """
    metrics = workdir / METRICS
    if metrics.exists() and metrics.stat().st_size:
        return False
    if (workdir / results.FILE).exists():
        return False
    folders = (workdir / name for name in (checkpoints.FOLDER, bad_step.FOLDER))
    return not any(folder.is_dir() and any(folder.iterdir()) for folder in folders)


def check_checkpoint(config: Config, metadata: dict[str, Any]) -> None:
    """Accepts the metadata of a checkpoint of this configuration, for `checkpoints.restore`.

    Raises:
      DamagedCheckpointError: the checkpoint is of another configuration, or has none.
    """
    step = metadata["step"]
    try:
        differing = configs.differences(configs.from_dict(metadata["config"]), config)
    except (KeyError, ConfigError) as error:
        raise DamagedCheckpointError(
            f"checkpoint of step {step} is of another run: it has no configuration of lrnet_jax"
        ) from error
    if differing:
        raise DamagedCheckpointError(
            f"checkpoint of step {step} is of another run ({'; '.join(differing)})"
        )
