"""Repeats the step that ended a run, and names the arrays in it that are not finite.

    python -m experiments.replay --bad_step=runs/lrnet50/bad_step/4711

The steps from the last good checkpoint to the bad one are taken again, bit for bit as in the run if
the devices are the same. The arrays that are not finite before and after the bad step are printed.
The state before it is saved in that folder as state/, a checkpoint for a closer look.
"""

import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import config as configs
from experiments.cli import command_line, device_flags
from experiments.config import Config, ConfigError
from experiments.run.assemble import Run, assemble
from experiments.run.inputs import open_data
from experiments.run.workdir import check_checkpoint
from lrnet_jax.training import checkpoints
from lrnet_jax.training.checkpoint_saver import CheckpointSaver
from lrnet_jax.training.devices import shard
from lrnet_jax.training.state import TrainState


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string(
        "bad_step", None, "The folder that the run printed: WORKDIR/bad_step/NUMBER.",
        flag_values=flag_values,
    )  # fmt: skip
    device_flags.define_flags(flag_values)


def main(options: flags.FlagValues) -> None:
    """Entry point."""
    folder = command_line.require(options, "bad_step", "runs/lrnet50/bad_step/4711")
    device_flags.apply(options)
    for line in replay(pathlib.Path(folder)):
        print(line)


def replay(folder: pathlib.Path) -> list[str]:
    """Repeats the bad step of a run.

    Args:
      folder: WORKDIR/bad_step/NUMBER.

    Returns:
      Lines to print: the metrics of that step, and what is not finite before and after it.

    Raises:
      ConfigError: there is no bad step, or the run has continued beyond it.
      CheckpointError: the checkpoint before it cannot be read.
    """
    bad = _bad_step(folder)
    workdir = folder.absolute().parent.parent
    config = configs.load(workdir / configs.FILE)
    dataset = open_data(config)
    run = assemble(config, dataset)
    state = _last_state(workdir, config, run)
    first = int(jax.device_get(state.step))
    if first >= bad:
        raise ConfigError(
            f"{workdir} has continued to step {first}, beyond its bad step {bad}; there is nothing "
            "to replay"
        )
    batches = dataset.train_batches(config.train.batch_size, seed=config.seed, start_step=first)
    for _ in range(first, bad - 1):
        state, _ = run.train_step(state, shard(next(batches)))
    before = not_finite(state)
    with CheckpointSaver(folder / "state", newest=1) as saver:
        saver.save(state, run.metadata)
    state, metrics = run.train_step(state, shard(next(batches)))
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    return [
        f"step {bad} from the checkpoint of step {first}: {json.dumps(values)}",
        f"not finite before it: {', '.join(before) or 'nothing'}",
        f"not finite after it: {', '.join(not_finite(state)) or 'nothing'}",
        f"state before it: {folder / 'state'}",
    ]


def _bad_step(folder: pathlib.Path) -> int:
    try:
        return json.loads((folder / "step.json").read_text())["step"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder} holds no bad step: step.json cannot be read") from error


def _last_state(workdir: pathlib.Path, config: Config, run: Run) -> TrainState:
    """The state of the last good checkpoint, or the initial one; the workdir is not changed."""
    check = functools.partial(check_checkpoint, config)
    restored = checkpoints.restore(workdir, like=run.state, check=check, set_aside=False)
    return run.state if restored is None else restored.state


def not_finite(state: TrainState) -> list[str]:
    """Paths of the arrays of a state that hold a NaN or an infinity."""
    host: dict[str, Any] = checkpoints.flatten(jax.device_get(state))
    return [path for path, array in host.items() if not np.isfinite(array).all()]


if __name__ == "__main__":
    command_line.run(main, define_flags)
