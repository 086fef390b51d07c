"""Measures what saving costs a run, and what a restart costs.

    python -m experiments.measure_saving --config=quickstart

Blocks of steps without and with a save take turns in one process, so that both meet the same
conditions. The cost of a save is the time that it adds to the steps around it, including the work
of its background threads. Its share of step time is taken over train.checkpoint_every steps.
"""

import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import flags

from experiments.cli import command_line, config_flags, config_help
from experiments.cli.stdout import print_lines
from experiments.config import Config
from experiments.run.assemble import Run, assemble, check_devices
from experiments.run.inputs import open_data
from lrnet_jax.training import checkpoints
from lrnet_jax.training.checkpoint_saver import CheckpointSaver
from lrnet_jax.training.devices import DeviceBatch, shard
from lrnet_jax.training.state import TrainState


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    config_flags.define_flags(flag_values)
    flags.DEFINE_integer("rounds", 10, "Pairs of blocks.", lower_bound=3, flag_values=flag_values)
    flags.DEFINE_integer("block", 20, "Steps of a block.", lower_bound=1, flag_values=flag_values)


def main(options: flags.FlagValues) -> None:
    """Entry point."""
    if options.config == "help":
        print_lines(config_help.help_text())
        return
    costs = measure(config_flags.chosen_config(options), options.rounds, options.block)
    print(json.dumps(costs._asdict()))


class Costs(NamedTuple):
    """What was measured.

    Attributes:
      step_ms: milliseconds of a step, median.
      save_ms: milliseconds that a save adds to the steps around it, median.
      share_percent: the saves' share of step time at the configured interval.
      restore_s: seconds of a restore with its verification.
      checkpoint_mb: megabytes of a checkpoint.
    """

    step_ms: float
    save_ms: float
    share_percent: float
    restore_s: float
    checkpoint_mb: float


def measure(config: Config, rounds: int, block: int) -> Costs:
    """Times steps, saves and a restore.

    Args:
      config: the configuration of the run.
      rounds: number of pairs of blocks.
      block: number of steps of a block.
    """
    check_devices(config)
    dataset = open_data(config)
    run = assemble(config, dataset)
    source = dataset.train_batches(config.train.batch_size, seed=config.seed)
    batches = [shard(next(source)) for _ in range(block)]
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        with CheckpointSaver(workdir, newest=config.train.keep_checkpoints) as saver:
            state, _ = _time_block(run, run.state, batches, None)  # compiles
            for _ in range(rounds):
                state, with_save = _time_block(run, state, batches, saver)
                state, without = _time_block(run, state, batches, None)
                pairs.append((with_save, without))
        started = time.perf_counter()
        restored = checkpoints.restore(workdir, like=state)
        assert restored is not None
        jax.block_until_ready(restored.state)
        restore = time.perf_counter() - started
        newest = checkpoints.find(workdir).folder
        size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    step = statistics.median(without for _, without in pairs) / block
    save = statistics.median(with_save - without for with_save, without in pairs)
    return Costs(
        step_ms=round(1000 * step, 2),
        save_ms=round(1000 * save, 2),
        share_percent=round(100 * save / (config.train.checkpoint_every * step), 3),
        restore_s=round(restore, 3),
        checkpoint_mb=round(size / 1e6, 3),
    )


def _time_block(
    run: Run, state: TrainState, batches: Sequence[DeviceBatch], saver: CheckpointSaver | None
) -> tuple[TrainState, float]:
    """The state after a block of steps, and its seconds; with a saver the first step is saved."""
    metrics: Any = None
    started = time.perf_counter()
    for position, batch in enumerate(batches):
        state, metrics = run.train_step(state, batch)
        if saver is not None and position == 0:
            saver.save(state, run.metadata)
    jax.block_until_ready(metrics)
    if saver is not None:
        saver.wait()
    return state, time.perf_counter() - started


if __name__ == "__main__":
    command_line.run(main, define_flags)
