r"""Trains a network.

    python -m experiments.train --config=lrnet50 --workdir=runs/lrnet50
    python -m experiments.train --config=quickstart --config.train.epochs=3
    python -m experiments.train --fork_from=runs/quickstart --workdir=runs/longer \
        --config.train.epochs=30

Rerun the same command to resume from the newest good checkpoint. On SIGTERM and SIGINT the run
saves its state at the end of the step, and ends with exit code 0. A run that reaches its last step
ends with an evaluation of the whole split.

--fork_from continues a run or one of its steps in a new workdir, with its weights, its optimiser
and its place in the data. The configuration is that of the run, unless --config names a recipe,
with the fields that the command line changes. --config.train.init_from takes the weights alone.
"""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence

from absl import flags

from experiments import config as configs
from experiments.cli import (
    command_line,
    config_flags,
    config_help,
    device_flags,
    distributed_flags,
    watch_flags,
)
from experiments.cli.stdout import print_lines, survive_closed_pipes
from experiments.config import Config, ConfigError
from experiments.run import machine, pasteable
from experiments.run import origin as origins
from experiments.run.assemble import assemble, check_devices, count_steps
from experiments.run.check_data import check_data
from experiments.run.inputs import open_data
from experiments.run.opening import open_session
from experiments.run.origin import start_from_origin
from experiments.run.overrides import override_all
from experiments.run.profiles import check_steps
from experiments.run.results import print_summary, read_result
from experiments.run.scores import Scores
from experiments.run.workdir import check_workdir, is_new
from lrnet_jax.data.dataset import Dataset
from lrnet_jax.data.prefetch import prefetch
from lrnet_jax.training import processes
from lrnet_jax.training.devices import shard
from lrnet_jax.training.metric_writers import MetricWriter


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    config_flags.define_flags(flag_values)
    flags.DEFINE_string(
        "workdir", None, "Folder of the run (default: runs/RECIPE).", flag_values=flag_values
    )
    flags.DEFINE_string(
        "fork_from", None, "A run or step to continue in a new --workdir, changed on purpose.",
        flag_values=flag_values,
    )  # fmt: skip
    watch_flags.define_flags(flag_values)
    distributed_flags.define_flags(flag_values)
    device_flags.define_flags(flag_values)


def main(options: flags.FlagValues) -> None:
    """Entry point."""
    if options.config == "help":
        print_lines(config_help.help_text())
        return
    survive_closed_pipes()
    config = _forked(options) if options.fork_from else config_flags.chosen_config(options)
    device_flags.apply(options)
    distributed_flags.join(options)
    if processes.is_first() and (warning := machine.idle_gpus()):
        print(f"warning: {warning}", flush=True)
    workdir = pathlib.Path(options.workdir or f"runs/{config.recipe}")
    steps, writers = watch_flags.chosen_steps(options), watch_flags.chosen_writers(options)
    if train(config, workdir, writers, steps) is None and processes.is_first():
        command = pasteable.command("experiments.train", sys.argv[1:])
        print(f"to resume: {command}", flush=True)


def _forked(options: flags.FlagValues) -> Config:
    """The configuration of a run that continues another one."""
    workdir = command_line.require(options, "workdir", f"{options.fork_from}_fork")
    origin = options.fork_from
    if pathlib.Path(workdir).absolute() == pathlib.Path(origin).absolute():
        raise ConfigError(f"--fork_from={origin} is --workdir itself; give another --workdir")
    changes = [("train.fork_from", origin), *config_flags.chosen_changes(options)]
    if options.config is not None:
        return override_all(config_flags.chosen_recipe(options), changes)
    saved = pathlib.Path(workdir) / configs.FILE
    # A fork that has begun needs its origin no more.
    if saved.exists() and (started := configs.load(saved)).train.fork_from == origin:
        return override_all(started, changes)
    return override_all(origins.forked(origin), changes)


def train(
    config: Config,
    workdir: pathlib.Path,
    writers: Sequence[MetricWriter] = (),
    profile_steps: range = range(0),
) -> Scores | None:
    """Runs a configuration in a workdir, from its newest good checkpoint if it has one.

    Args:
      config: what to compute.
      workdir: folder of the run; made if it is missing.
      writers: get the metrics besides metrics.jsonl and TensorBoard, in the first process.
      profile_steps: steps to trace.

    Returns:
      The result on the evaluation split; None if a signal stopped the run, after it was saved.

    Raises:
      ConfigError: it cannot run here as configured, or the workdir holds another run.
      WorkdirInUseError: another process runs there.
      CheckpointError: no checkpoint is good, or one cannot be written.
      DivergedError: a step went wrong; no checkpoint was written since.
    """
    started = time.monotonic()

    # ---- checks, before anything is written
    dataset = _checked_data(config, profile_steps)
    new = is_new(workdir)
    if processes.is_first():  # reads and writes the workdir for all processes
        check_workdir(config, workdir)
    if (result := _finished(workdir)) is not None:
        return result

    # ---- the loop
    with (
        open_session(
            config, workdir, dataset,
            start_from_origin(config, workdir, dataset, assemble(config, dataset)),
            new=new, started=started, writers=writers, profile_steps=profile_steps,
        ) as session,
        prefetch(session.batches(), shard) as batches,
    ):  # fmt: skip
        while session.step < session.run.total_steps:
            # Here and not after the step, where its save comes first: a run that is stopped
            # during the evaluation resumes before it.
            if session.evaluation_is_due():
                session.evaluate()
                if session.stopped:
                    break
            session.take_step(batches)
            if session.report_is_due():
                session.report()
            session.poll()
            if session.save_is_due():
                session.save()
            if session.stopped:
                break
        return session.finish()


def _checked_data(config: Config, profile_steps: range) -> Dataset:
    """The images of a run that can run here."""
    check_devices(config)
    dataset = open_data(config)
    check_data(config, dataset)
    check_steps(profile_steps, count_steps(config, dataset))
    return dataset


def _finished(workdir: pathlib.Path) -> Scores | None:
    """The result of a finished run, which is printed again; None if there is none."""
    found = read_result(workdir) if processes.is_first() else None
    record = processes.broadcast(found and dataclasses.asdict(found))
    if record is None:
        return None
    result = Scores(**record)
    print(f"{workdir} is finished; delete it to train again")
    print_summary(workdir, result)
    return result


if __name__ == "__main__":
    command_line.run(main, define_flags)
