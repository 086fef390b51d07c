"""A run between its start and its end: its state, what it records, what it saves.

`experiments.train` has the loop. A session holds what changes while the loop runs, and does one
thing a method. `opening.py` makes it.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from experiments.config import Config
from experiments.run import results
from experiments.run.assemble import Run
from experiments.run.bad_step import save_bad_step
from experiments.run.inputs import eval_batches
from experiments.run.profiles import describe_trace
from experiments.run.results import describe_numbers, print_summary
from experiments.run.save_clock import SaveClock
from experiments.run.scores import Scores
from lrnet_jax.data.dataset import Batch, Dataset
from lrnet_jax.training import processes
from lrnet_jax.training.atomic import write_atomically
from lrnet_jax.training.checkpoint_saver import CheckpointSaver
from lrnet_jax.training.devices import DeviceBatch
from lrnet_jax.training.display import Display, duration
from lrnet_jax.training.divergence import DivergedError, fault
from lrnet_jax.training.evaluation import Evaluation, evaluate
from lrnet_jax.training.metric_writers import MetricWriters
from lrnet_jax.training.progress import Progress
from lrnet_jax.training.speed import SpeedMeter
from lrnet_jax.training.state import TrainState
from lrnet_jax.training.step_trace import StepTrace
from lrnet_jax.training.stopping import StopRequest


@dataclasses.dataclass
class Session:
    """A run at work, in one of its processes.

    Attributes:
      config: the configuration of the run.
      workdir: folder of the run.
      dataset: its images.
      run: what it is made of, with the state to start from.
      step: number of the last step that was taken.
      progress: see `Progress`; its seconds are those before this process.
      started: `time.monotonic()` at the start of this process.
      stop: notices SIGTERM and SIGINT.
      saver: of the first process; None in the others.
      metrics: where they are recorded; no writer in all processes but the first.
      display: what a person sees; shown by the first process only.
      trace: of some steps, by the first process only.
      state: the state after the last step, on all devices.
      stopped: whether the run ends before its last step.
    """

    config: Config
    workdir: pathlib.Path
    dataset: Dataset
    run: Run
    step: int
    progress: Progress
    started: float
    stop: StopRequest
    saver: CheckpointSaver | None
    metrics: MetricWriters
    display: Display
    trace: StepTrace
    state: TrainState = dataclasses.field(init=False)
    stopped: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        self.state = self.run.state
        self._first_step = self.step
        self._agreement = processes.Agreement()
        self._clock = SaveClock(self.config.train.checkpoint_minutes)
        self._save_requested = False
        self._speed = SpeedMeter(self.config.train.batch_size)
        self._pending: list[Any] = []  # metrics that are still on the devices

    def batches(self) -> Iterator[Batch]:
        """The share of this process of the batches of the steps that are left."""
        return self.dataset.train_batches(
            self.config.train.batch_size,
            seed=self.config.seed,
            start_step=self.step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def take_step(self, batches: Iterator[DeviceBatch]) -> None:
        """Takes the next step; the device computes on while this returns.

        Args:
          batches: on the devices.
        """
        with self.trace.step(self.step + 1, after=self.state):
            with self._speed.waiting():
                batch = next(batches)
            # A hidden copy in every step would stall the device.
            with jax.transfer_guard("disallow"):
                self.state, metrics = self.run.train_step(self.state, batch)
        self.step += 1
        self._pending.append(metrics)
        if self.trace.is_complete():
            self.end_trace()
        if self.step == self._first_step + 1:
            jax.block_until_ready(metrics)
            self._speed.restart(self.step)
            self.display.restart(self.step)
            self.display.line(f"first step after {self._age()}, including compilation")

    def evaluation_is_due(self) -> bool:
        """Whether the state is to be evaluated before the next step."""
        every = round(self.config.train.eval_every_epochs * self.run.steps_per_epoch)
        due = every and self.step and self.step % every == 0
        return bool(due) and self.progress.evaluated < self.step

    def evaluate(self) -> None:
        """Evaluates the state, and saves it if it is the best.

        A request to stop ends the evaluation without a result and sets `stopped`. The resumed run
        then evaluates again.
        """
        evaluation = self._evaluation()
        if evaluation is None:
            self.stopped = True
            return
        self._record_evaluation(evaluation)
        self.display.line(f"evaluation at step {self.step}: {describe_numbers(evaluation)}")
        if self.progress.best_step == self.step:
            self.save()
        self._speed.restart(self.step)

    def report_is_due(self) -> bool:
        """Whether metrics are to be fetched after this step."""
        every = self.config.train.log_every
        return self.step % every == 0 or self.step == self.run.total_steps

    def report(self) -> None:
        """Records the metrics, and shows those of the last step."""
        values = jax.device_get(self._pending[-1])
        speed = self._speed.measure(self.step)
        self._record_metrics()
        if speed:
            self.metrics.scalars("speed", self.step, speed)
        if self.saver is not None:
            self.saver.check()
        epoch = self.step / self.run.steps_per_epoch
        self.display.progress(self.step, _figures(epoch, values, speed))

    def poll(self) -> None:
        """Agrees with the other processes on stopping and on saves by time; once a step."""
        votes = bool(self.stop), processes.is_first() and self._clock.is_due()
        self.stopped, self._save_requested = self._agreement.poll(*votes)

    def save_is_due(self) -> bool:
        """Whether the state is to be saved after this step."""
        train = self.config.train
        multiple = self.step % train.checkpoint_every == 0 or bool(
            train.keep_every and self.step % train.keep_every == 0
        )
        return multiple or self._save_requested or self.stopped

    def save(self) -> None:
        """Records the metrics, then starts saving the state unless its step is saved already."""
        self._record_metrics()
        self._clock.restart()
        if self.saver is None:
            return
        # A step that is saved is never taken again, so its record must not be lost either.
        self.metrics.sync()
        progress = dataclasses.replace(self.progress, seconds=self._spent())
        metadata = {**self.run.metadata, "progress": progress.to_dict()}
        self.saver.save(self.state, metadata, best=progress.best_step)

    def end_trace(self) -> None:
        """Writes a trace that was begun, and says how to look at it."""
        if (steps := self.trace.end(self.state)) is not None:
            for line in describe_trace(steps, self.workdir):
                self.display.line(line)
            self._speed.restart(self.step)

    def finish(self) -> Scores | None:
        """Saves, evaluates and writes the result; None if a signal stopped the run."""
        self.end_trace()
        self.save()  # first, so that nothing computed is lost
        if self.saver is not None:
            self.saver.wait()
        total = self.run.total_steps
        evaluation = None if self.stopped else self._evaluation()
        self.display.close()
        if evaluation is None:
            by = self.stop.name or "a signal to another process"
            self.display.line(f"stopped by {by} after step {self.step} of {total}, which is saved")
            return None
        result = Scores.at_step(total, evaluation)
        self._record_evaluation(evaluation)
        best = self.progress
        if best.best_step != total:
            self.display.line(
                f"best evaluation: top-1 {best.best_top1:.2f} % at step {best.best_step}"
            )
        if processes.is_first():
            record = json.dumps(dataclasses.asdict(result), indent=2) + "\n"
            write_atomically(self.workdir / results.FILE, record)
            print(f"trained in {duration(self._spent())}")
            print_summary(self.workdir, result)
        return result

    def _record_metrics(self) -> None:
        """Fetches, records and checks the metrics that are still on the devices.

        Raises:
          DivergedError: a step went wrong.
        """
        first = self.step - len(self._pending) + 1
        for step, values in enumerate(jax.device_get(self._pending), start=first):
            self.metrics.scalars("train", step, values)
            if (reason := fault(values, self.config.train.max_loss)) is None:
                continue
            if self.saver is None:
                raise DivergedError(f"step {step}: {reason}; process 0 prints more")
            self.saver.wait()
            raise save_bad_step(self.workdir, self.config, self.dataset, step, reason)
        self._pending.clear()

    def _evaluation(self) -> Evaluation | None:
        """Top-1, top-5 and loss of the evaluation split; None if a stop was requested meanwhile."""
        batches = eval_batches(self.dataset, self.config.train.eval_batch_size)
        with self.display.busy("evaluating"):
            if processes.are_several():  # they agree on stops between steps only
                return evaluate(self.run.eval_step, self.state.evaluated, batches)
            batches = _until(self.stop, batches)
            result = evaluate(self.run.eval_step, self.state.evaluated, batches)
            return None if self.stop else result

    def _record_evaluation(self, evaluation: Evaluation) -> None:
        self.metrics.scalars("eval", self.step, dataclasses.asdict(evaluation))
        self.progress = self.progress.after_evaluation(self.step, evaluation.top1)

    def _spent(self) -> float:
        """Seconds spent on the run, by this process and those before it."""
        return self.progress.seconds + time.monotonic() - self.started

    def _age(self) -> str:
        return duration(time.monotonic() - self.started)


def _figures(epoch: float, values: dict[str, Any], speed: dict[str, float]) -> list[str]:
    """What a person watches, the most important first: a narrow terminal shows no more."""
    figures = [f"loss {values['loss']:.3f}", f"accuracy {100 * values['accuracy']:.1f} %"]
    if speed:
        figures.insert(1, f"{speed['images_per_second']:.0f} images/s")
        figures.append(f"waited {speed['input_seconds']:.1f} s for input")
    if "memory_gib" in speed:
        figures.append(f"{speed['memory_gib']:.1f} GiB at most")
    return [*figures, f"epoch {epoch:.2f}"]


def _until(stop: StopRequest, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches up to a request to stop, at least one."""
    for batch in batches:
        yield batch
        if stop:
            return
