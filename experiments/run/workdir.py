"""Whose run a workdir holds: checked before anything is written into it."""

import contextlib
import errno
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from experiments import config as configs
from experiments.config import Config, ConfigError
from lrnet_jax.training import workdir_lock
from lrnet_jax.training.atomic import spare_name, write_atomically
from lrnet_jax.training.checkpoints import DamagedCheckpointError

DISK_ERRORS = frozenset(
    {
        errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EIO, errno.ENOLCK,
        errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS, errno.ESTALE,
    }
)  # fmt: skip


def check_workdir(config: Config, workdir: pathlib.Path) -> bool:
    """Whether a workdir is empty, and not this configuration's run to go on with.

    Raises:
      ConfigError: it holds another configuration's run, or something that is no run.
    """
    path = workdir / configs.FILE
    if path.exists():
        differing = configs.differences(configs.load(path), config)
        if differing:
            raise ConfigError(
                f"{workdir} holds a run with another configuration ({'; '.join(differing)}); "
                "give another --workdir, or the same configuration to resume"
            )
        return False
    ours = {workdir_lock.FILE, spare_name(path).name}  # a run that was killed in its first moments
    if workdir.exists() and (
        not workdir.is_dir() or any(child.name not in ours for child in workdir.iterdir())
    ):
        raise ConfigError(f"{workdir} is not empty and no run of ours; give another --workdir")
    return True


@contextlib.contextmanager
def claim_workdir(config: Config, workdir: pathlib.Path) -> Iterator[bool]:
    """Makes a workdir this process's, with the configuration in it; True for a new run.

    Raises:
      ConfigError: see `check_workdir`; or it cannot be written to, now or later while it is owned.
      WorkdirInUseError: another process has it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with workdir_lock.lock_workdir(workdir):
            new = check_workdir(config, workdir)
            record = json.dumps(configs.to_dict(config), indent=2) + "\n"
            write_atomically(workdir / configs.FILE, record)
            yield new
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise ConfigError(
            f"cannot write to --workdir={workdir}: {error.strerror}; checkpoints before this are "
            "untouched; make room or mend it, then the same command goes on"
        ) from error


def same_run(metadata: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """A check, for `checkpoints.restore`, that a checkpoint comes from this configuration."""
    wanted = configs.from_dict(metadata["config"])

    def check(found: dict[str, Any]) -> None:
        try:
            differing = configs.differences(configs.from_dict(found["config"]), wanted)
        except (KeyError, ConfigError) as error:
            raise DamagedCheckpointError(
                f"checkpoint of step {found['step']} is of another run: no configuration of ours"
            ) from error
        if differing:
            raise DamagedCheckpointError(
                f"checkpoint of step {found['step']} is of another run ({'; '.join(differing)})"
            )

    return check
