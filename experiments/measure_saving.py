"""Measures what saving costs a run, and what a restart costs.

    python -m experiments.measure_saving --config=quickstart

Blocks of steps without and with a save at their end take turns in one process, so that both meet
the same machine. The cost of a save is what it adds to the steps around it, the work of its
background threads included; as a share of step time it is spread over train.checkpoint_every.
"""

import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
from absl import flags

from experiments.cli import command_line, config_flags
from experiments.cli.stdout import print_lines
from experiments.config import Config
from experiments.run.assemble import assemble, check_devices
from experiments.run.inputs import open_data
from lrnet_jax.training import checkpoints
from lrnet_jax.training.checkpoint_saver import CheckpointSaver
from lrnet_jax.training.devices import shard


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    config_flags.define_flags(flag_values)
    flags.DEFINE_integer("rounds", 10, "Pairs of blocks.", lower_bound=3, flag_values=flag_values)
    flags.DEFINE_integer("block", 20, "Steps of a block.", lower_bound=1, flag_values=flag_values)


def main(options: flags.FlagValues) -> None:
    """Entry point."""
    if options.config == "help":
        print_lines(config_flags.help_text())
        return
    print(json.dumps(measure(config_flags.chosen_config(options), options.rounds, options.block)))


def measure(config: Config, rounds: int, block: int) -> dict[str, Any]:
    """Times steps, saves and a restore.

    Returns:
      Milliseconds of a step and of a save (medians), the saves' share of step time in percent at
      the configured interval, seconds of a verified restore, megabytes of a checkpoint.
    """
    check_devices(config)
    dataset = open_data(config)
    run = assemble(config, dataset)
    state = run.state
    batches = dataset.train_batches(config.train.batch_size, seed=config.seed)
    data = [shard(next(batches)) for _ in range(block)]
    metrics: Any = None
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        times: dict[bool, list[float]] = {False: [], True: []}
        with CheckpointSaver(workdir, newest=config.train.keep_checkpoints) as saver:
            for number in range(2 * rounds + 1):
                saves = bool(number % 2)
                started = time.perf_counter()
                for position, batch in enumerate(data):
                    state, metrics = run.train_step(state, batch)
                    if saves and position == 0:
                        saver.save(state, run.metadata)
                jax.block_until_ready(metrics)
                saver.wait()
                if number:  # the first block compiles
                    times[saves].append(time.perf_counter() - started)
        started = time.perf_counter()
        restored = checkpoints.restore(workdir, like=state)
        assert restored is not None
        jax.block_until_ready(restored.state)
        restore = time.perf_counter() - started
        newest = checkpoints.find(workdir).folder
        size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    plain = statistics.median(times[False])
    pairs = zip(times[True], times[False], strict=True)
    save = statistics.median(with_save - without for with_save, without in pairs)
    interval = config.train.checkpoint_every * plain / block
    return {
        "step_ms": round(1000 * plain / block, 2),
        "save_ms": round(1000 * save, 2),
        "share_percent": round(100 * save / interval, 3),
        "restore_s": round(restore, 3),
        "checkpoint_mb": round(size / 1e6, 3),
    }


if __name__ == "__main__":
    command_line.run(main, define_flags)
