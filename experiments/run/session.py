"""A run between its start and its end: its state, what it records, what it saves.

`experiments.train` has the loop. A session holds what changes while the loop runs, and does one
thing a method.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from experiments.config import Config
from experiments.run import results
from experiments.run.assemble import Run, num_params
from experiments.run.bad_step import save_bad_step
from experiments.run.check_data import check_same_images
from experiments.run.inputs import eval_batches
from experiments.run.overrides import describe
from experiments.run.results import describe_result, print_summary
from experiments.run.save_clock import SaveClock
from experiments.run.scores import Scores
from experiments.run.workdir import check_checkpoint, claim_workdir
from lrnet_jax.data.dataset import Batch, Dataset
from lrnet_jax.training import checkpoints, processes
from lrnet_jax.training.atomic import write_atomically
from lrnet_jax.training.checkpoint_saver import CheckpointSaver
from lrnet_jax.training.devices import DeviceBatch, replicate
from lrnet_jax.training.divergence import DivergedError, fault
from lrnet_jax.training.evaluation import Evaluation, evaluate
from lrnet_jax.training.progress import Progress
from lrnet_jax.training.reporting import NullReporter, Reporter, duration
from lrnet_jax.training.speed import SpeedMeter
from lrnet_jax.training.state import TrainState
from lrnet_jax.training.stopping import StopRequest


class Start(NamedTuple):
    """What the first process found in the workdir, as JSON types for the other processes.

    Attributes:
      new: whether no run was there.
      resumed: whether there was a checkpoint.
      damaged: a message for each checkpoint that was set aside.
      progress: the fields of the checkpoint's `Progress`.
    """

    new: bool
    resumed: bool
    damaged: list[str]
    progress: dict[str, Any]


@contextlib.contextmanager
def open_session(
    config: Config, workdir: pathlib.Path, dataset: Dataset, run: Run, *, new: bool, started: float
) -> Iterator["Session"]:
    """Locks the workdir, restores its newest good checkpoint, opens the files.

    However the context ends, a save in flight is finished and the files are closed.

    Args:
      config: the configuration of the run.
      workdir: folder of the run.
      dataset: its images.
      run: from `assemble`. The caller keeps no reference to it: of a resumed run the memory of the
        initial state is freed.
      new: whether the workdir was new when it was checked.
      started: `time.monotonic()` at the start of the command.

    Raises:
      ConfigError, WorkdirInUseError: see `claim_workdir`.
      CheckpointError: no checkpoint is good.
      LostProcessError: another process of the run is gone.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.explain_losses())
        stop = stack.enter_context(StopRequest())
        start, saver = Start(new, resumed=False, damaged=[], progress={}), None
        if processes.is_first():
            stack.enter_context(claim_workdir(config, workdir))
            newest, every = config.train.keep_checkpoints, config.train.keep_every
            saver = stack.enter_context(CheckpointSaver(workdir, newest=newest, every=every))
            start, run = _restore(config, workdir, dataset, start, run)
        start = Start(**processes.broadcast(start._asdict()))
        if start.resumed:
            run = run._replace(state=replicate(processes.broadcast_arrays(run.state)))
        progress = Progress(**start.progress)
        step = int(jax.device_get(run.state.step))
        reporter: Reporter | NullReporter = NullReporter()
        if processes.is_first():
            reporter = Reporter(
                workdir,
                total_steps=run.total_steps,
                first_step=step,
                evaluated=progress.evaluated,
            )
        stack.enter_context(reporter)
        session = Session(
            config, workdir, dataset, run, step, progress, started, stop, saver, reporter
        )
        session.print_start(start)
        yield session


def _restore(
    config: Config, workdir: pathlib.Path, dataset: Dataset, start: Start, run: Run
) -> tuple[Start, Run]:
    """The newest good checkpoint of the workdir, if there is one."""
    restored = checkpoints.restore(
        workdir, like=run.state, check=functools.partial(check_checkpoint, config)
    )
    if restored is None:
        return start, run
    check_same_images(restored.metadata, dataset)
    start = start._replace(
        resumed=True, damaged=list(restored.damaged), progress=restored.metadata["progress"]
    )
    return start, run._replace(state=restored.state)


@dataclasses.dataclass
class Session:
    """A run at work, in one of its processes; `open_session` makes it.

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
      reporter: of the first process; one that does nothing in the others.
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
    reporter: Reporter | NullReporter
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

    def print_start(self, start: Start) -> None:
        """Prints what runs where, from which step."""
        for message in start.damaged:
            self.reporter.line(f"{message}; set aside")
        beginning = "new run" if start.new else f"resumed at step {self.step}"
        self.reporter.line(f"{beginning} in {self.workdir}")
        if not start.resumed:
            for line in self.run.origin:
                self.reporter.line(line)
        if start.new:
            self.reporter.line(f"configuration:\n{describe(self.config)}")
        dataset, train = self.dataset, self.config.train
        self.reporter.line(
            f"{self.config.network} ({num_params(self.state.params) / 1e6:.3f} M parameters) "
            f"on {dataset.name} "
            f"({dataset.num_train} + {dataset.num_eval} images), {self.run.total_steps} steps of "
            f"{train.batch_size} on {jax.device_count()} x {jax.devices()[0].device_kind}"
        )

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
        with self._speed.waiting():
            batch = next(batches)
        with jax.transfer_guard("disallow"):  # a hidden copy in every step would stall the device
            self.state, metrics = self.run.train_step(self.state, batch)
        self.step += 1
        self._pending.append(metrics)
        if self.step == self._first_step + 1:
            jax.block_until_ready(metrics)
            self._speed.restart(self.step)
            self.reporter.line(f"first step after {self._age()}, including compilation")

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
        self.reporter.line(f"evaluation at step {self.step}: {describe_result(evaluation)}")
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
            self.reporter.scalars("speed", self.step, speed)
        if self.saver is not None:
            self.saver.check()
        self.reporter.progress(
            self.step,
            f"epoch {self.step / self.run.steps_per_epoch:.2f}  loss {values['loss']:.3f}  "
            f"accuracy {100 * values['accuracy']:.1f} %"
            + (f"  {speed['images_per_second']:.0f} images/s" if speed else ""),
        )

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
        self.reporter.sync()
        progress = dataclasses.replace(self.progress, seconds=self._spent())
        metadata = {**self.run.metadata, "progress": progress.to_dict()}
        self.saver.save(self.state, metadata, best=progress.best_step)

    def finish(self) -> Scores | None:
        """Saves, evaluates and writes the result; None if a signal stopped the run."""
        self.save()  # first, so that nothing computed is lost
        if self.saver is not None:
            self.saver.wait()
        total = self.run.total_steps
        evaluation = None if self.stopped else self._evaluation()
        if evaluation is None:
            by = self.stop.name or "a signal to another process"
            self.reporter.line(f"stopped by {by} after step {self.step} of {total}, which is saved")
            return None
        result = Scores.at_step(total, evaluation)
        self._record_evaluation(evaluation)
        best = self.progress
        if best.best_step != total:
            self.reporter.line(
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
            self.reporter.scalars("train", step, values)
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
        if processes.are_several():  # they agree on stops between steps only
            return evaluate(self.run.eval_step, self.state.evaluated, batches)
        batches = _until(self.stop, batches)
        result = evaluate(self.run.eval_step, self.state.evaluated, batches)
        return None if self.stop else result

    def _record_evaluation(self, evaluation: Evaluation) -> None:
        self.reporter.scalars("eval", self.step, dataclasses.asdict(evaluation))
        self.progress = self.progress.after_evaluation(self.step, evaluation.top1)

    def _spent(self) -> float:
        """Seconds spent on the run, by this process and those before it."""
        return self.progress.seconds + time.monotonic() - self.started

    def _age(self) -> str:
        return duration(time.monotonic() - self.started)


def _until(stop: StopRequest, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches up to a request to stop, at least one."""
    for batch in batches:
        yield batch
        if stop:
            return
