"""Trains a network.

    python -m experiments.train --config=lrnet50 --workdir=runs/lrnet50
    python -m experiments.train --config=quickstart --config.train.epochs=3

The same command goes on from the newest good checkpoint. SIGTERM and SIGINT save at the end of the
step and end with exit code 0. Ends with an evaluation of the whole split.

Read top to bottom: configuration, data, network, state, loop, end.
"""

import contextlib
import dataclasses
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags

from experiments import config as configs
from experiments.cli import command_line, config_flags, distributed_flags
from experiments.cli.overrides import describe
from experiments.cli.stdout import print_lines
from experiments.config import Config
from experiments.run import results
from experiments.run.assemble import assemble, check_devices, num_params
from experiments.run.bad_step import bad_step
from experiments.run.inputs import eval_batches, open_data
from experiments.run.results import describe_result, finished, print_summary
from experiments.run.workdir import check_workdir, claim_workdir, same_run
from lrnet_jax.data.prefetch import prefetch
from lrnet_jax.training import checkpoints, processes
from lrnet_jax.training.atomic import write_atomically
from lrnet_jax.training.checkpoint_saver import CheckpointSaver
from lrnet_jax.training.devices import replicate, shard
from lrnet_jax.training.divergence import DivergedError, fault
from lrnet_jax.training.evaluation import evaluate
from lrnet_jax.training.progress import Progress
from lrnet_jax.training.reporting import NullReporter, Reporter, duration
from lrnet_jax.training.state import TrainState
from lrnet_jax.training.stopping import StopRequest


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    config_flags.define_flags(flag_values)
    flags.DEFINE_string(
        "workdir", None, "Folder of the run (default: runs/RECIPE).", flag_values=flag_values
    )
    distributed_flags.define_flags(flag_values)


def main(options: flags.FlagValues) -> None:
    """Entry point."""
    if options.config == "help":
        print_lines(config_flags.help_text())
        return
    config = config_flags.chosen_config(options)
    distributed_flags.join(options)
    workdir = pathlib.Path(options.workdir or f"runs/{config.recipe}")
    if train(config, workdir) is None and processes.is_first():
        command = shlex.join(["python", "-m", "experiments.train", *sys.argv[1:]])
        print(f"to go on: {command}", flush=True)


def train(config: Config, workdir: pathlib.Path) -> dict[str, Any] | None:
    """Runs a configuration in a workdir, from its newest good checkpoint if it has one.

    Returns:
      The result: top1, top5 (percent), loss, count of the evaluation split, and step. None if a
      signal stopped it; all is saved then.

    Raises:
      ConfigError: it cannot run here as configured, or the workdir is another run's.
      WorkdirInUseError: another process runs there.
      CheckpointError: no checkpoint is good, or one cannot be written.
      DivergedError: a step went wrong; no checkpoint was written since.
    """
    started = time.monotonic()

    # ---- what was asked for, checked before anything is written
    check_devices(config)
    dataset = open_data(config)
    first = processes.is_first()  # reads and writes for all processes
    if first:
        check_workdir(config, workdir)
    if (result := processes.broadcast(finished(workdir) if first else None)) is not None:
        print(f"{workdir} is finished; delete it to train again")
        print_summary(workdir, result)
        return result
    run = assemble(config, dataset)
    total_steps, steps_per_epoch, state = run.total_steps, run.steps_per_epoch, run.state

    with contextlib.ExitStack() as closing:  # however it ends, saves in flight are finished
        # ---- what there is already
        closing.enter_context(processes.explain_losses())
        stop = closing.enter_context(StopRequest())
        agreement = processes.Agreement()
        found: dict[str, Any] = {}
        saver = None
        if first:
            new = closing.enter_context(claim_workdir(config, workdir))
            saver = closing.enter_context(
                CheckpointSaver(
                    workdir, newest=config.train.keep_checkpoints, every=config.train.keep_every
                )
            )
            restored = checkpoints.restore(workdir, like=state, check=same_run(run.metadata))
            found = {"new": new, "resumed": restored is not None, "damaged": [], "progress": {}}
            if restored is not None:
                state = restored.state
                found["damaged"] = list(restored.damaged)
                found["progress"] = restored.metadata["progress"]
        found = processes.broadcast(found)
        if found["resumed"]:
            state = replicate(processes.broadcast_arrays(state))
            run = run._replace(state=state)  # lets go of the initial one's memory
        progress = Progress(**found["progress"])
        first_step = int(jax.device_get(state.step))

        def evaluation(state: TrainState) -> dict[str, Any] | None:
            """None where a stop was asked for meanwhile."""
            batches = eval_batches(dataset, config.train.eval_batch_size)
            if processes.are_several():  # they agree on stops at steps only
                return evaluate(run.eval_step, *state.evaluated, batches)
            result = evaluate(run.eval_step, *state.evaluated, until(stop, batches))
            return None if stop else result

        # ---- the loop
        reporter: Reporter | NullReporter = NullReporter()
        if first:
            reporter = Reporter(
                workdir,
                total_steps=total_steps,
                first_step=first_step,
                evaluated=progress.evaluated,
            )
        closing.enter_context(reporter)
        say = reporter.line
        for message in found["damaged"]:
            say(f"{message}; set aside")
        say(f"{'new run' if found['new'] else f'resumed at step {first_step}'} in {workdir}")
        if found["new"]:
            say(f"configuration:\n{describe(config)}")
        say(
            f"{config.network} ({num_params(state.params) / 1e6:.3f} M parameters) "
            f"on {dataset.name} "
            f"({dataset.num_train} + {dataset.num_eval} images), {total_steps} steps of "
            f"{config.train.batch_size} on {jax.device_count()} x {jax.devices()[0].device_kind}"
        )
        eval_every = round(config.train.eval_every_epochs * steps_per_epoch)
        clock = SaveClock(config.train.checkpoint_minutes)
        spent_before = progress.seconds
        pending: list[Any] = []  # metrics still on the device

        def report(step: int) -> None:
            """Fetches, records and judges the metrics of all steps up to this one."""
            first = step - len(pending) + 1
            for number, values in enumerate(jax.device_get(pending), start=first):
                reporter.scalars("train", number, values)
                if (reason := fault(values, config.train.max_loss)) is not None:
                    if saver is None:
                        raise DivergedError(f"step {number}: {reason}; process 0 says more")
                    saver.wait()
                    raise bad_step(workdir, config, dataset, number, reason)
            pending.clear()

        def save() -> None:
            clock.saved()
            if saver is None:
                return
            reporter.sync()  # a step that is saved is never taken again: nor may its record be lost
            spent = spent_before + time.monotonic() - started
            record = dataclasses.replace(progress, seconds=spent).to_dict()
            saver.save(state, {**run.metadata, "progress": record}, best=progress.best_step)

        batches = closing.enter_context(
            prefetch(
                dataset.train_batches(
                    config.train.batch_size,
                    seed=config.seed,
                    start_step=first_step,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                ),
                shard,
            )
        )
        stopped = False
        for step in range(first_step + 1, total_steps + 1):
            # Evaluated here, after the save of the step before: a run that is stopped meanwhile
            # comes here again.
            done = step - 1
            if eval_every and done and done % eval_every == 0 and progress.evaluated < done:
                result = evaluation(state)
                if result is None:
                    stopped = True
                    break
                reporter.scalars("eval", done, result)
                say(f"evaluation at step {done}: {describe_result(result)}")
                progress = progress.after_evaluation(done, result["top1"])
                if progress.best_step == done:
                    save()
            batch = next(batches)
            with jax.transfer_guard("disallow"):  # a hidden copy a step would stall the device
                state, metrics = run.train_step(state, batch)
            pending.append(metrics)
            if step == first_step + 1:
                jax.block_until_ready(metrics)
                say(f"first step after {duration(time.monotonic() - started)}, compilation in it")
            if step % config.train.log_every == 0 or step == total_steps:
                values = jax.device_get(metrics)
                report(step)
                if saver is not None:
                    saver.check()
                reporter.progress(
                    step,
                    f"epoch {step / steps_per_epoch:.2f}  loss {values['loss']:.3f}  "
                    f"accuracy {100 * values['accuracy']:.1f} %",
                )
            stopped, save_now = agreement.poll(bool(stop), first and clock.is_due())
            if is_saved(config.train, step) or save_now or stopped:
                report(step)
                save()
            if stopped:
                break

        # ---- the end: save first, then evaluate; nothing computed is lost
        step = int(jax.device_get(state.step))
        report(step)
        save()
        if saver is not None:
            saver.wait()
        result = None if stopped else evaluation(state)
        if result is None:
            by = stop.name or "a signal to another process"
            say(f"stopped by {by} after step {step} of {total_steps}, which is saved")
            return None
        result = {"step": total_steps, **result}
        reporter.scalars("eval", total_steps, result)
        progress = progress.after_evaluation(total_steps, result["top1"])
        if progress.best_step != total_steps:
            say(f"best evaluation: top-1 {progress.best_top1:.2f} % at step {progress.best_step}")
        if first:
            write_atomically(workdir / results.FILE, json.dumps(result, indent=2) + "\n")
            print(f"trained in {duration(spent_before + time.monotonic() - started)}")
            print_summary(workdir, result)
    return result


def is_saved(train: configs.Train, step: int) -> bool:
    """Whether a checkpoint is due at a step, whatever the time."""
    return step % train.checkpoint_every == 0 or bool(
        train.keep_every and step % train.keep_every == 0
    )


class SaveClock:
    """Says when the last save is so many minutes ago. Wall-clock jumps do not touch it."""

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self.saved()

    def saved(self) -> None:
        """Starts anew."""
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time; never with 0 minutes."""
        return bool(self._seconds) and time.monotonic() - self._last >= self._seconds


def until(stop: StopRequest, batches: Iterator[Any]) -> Iterator[Any]:
    """The batches up to a request to stop, at least one."""
    for batch in batches:
        yield batch
        if stop:
            return


if __name__ == "__main__":
    command_line.run(main, define_flags)
