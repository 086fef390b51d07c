"""Where the metrics of a run go: a list of writers, here a JSONL file and TensorBoard.

A writer of your own is an object with the four methods of `MetricWriter`;
`python -m experiments.train --writer=MODULE:NAME` adds it to the list.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from lrnet_jax.training.atomic import write_atomically

METRICS = "metrics.jsonl"


class RunStart(NamedTuple):
    """Where a process begins to train.

    Attributes:
      workdir: folder of the run, which exists.
      config: the configuration of the run, as JSON types.
      step: 0, or the step that the run is resumed from. Later steps, which a stopped process wrote
        after its last checkpoint, are taken again.
      evaluated: the last evaluation that is not repeated, 0 for none.
    """

    workdir: pathlib.Path
    config: dict[str, Any]
    step: int = 0
    evaluated: int = 0


class MetricWriter(Protocol):
    """What a run tells its metrics to. Only the first process of a run calls it.

    An exception that a method raises ends the run, as a full disk does.
    """

    def start(self, run: RunStart) -> None:
        """Opens what is written to; called once, before any other method."""

    def scalars(self, kind: str, step: int, values: dict[str, int | float]) -> None:
        """Records the values of a step, by their names.

        Steps of a kind rise. The kinds are "train" (each step), "eval" (each evaluation) and
        "speed" (each report).
        """

    def sync(self) -> None:
        """Returns when all that was recorded is safe; a checkpoint is saved after it."""

    def close(self) -> None:
        """Ends the writing, also of a run that failed; the last call."""


def missing_methods(writer: object) -> list[str]:
    """The methods of `MetricWriter` that an object lacks."""
    names = [name for name in vars(MetricWriter) if not name.startswith("_")]
    return [name for name in names if not callable(getattr(writer, name, None))]


class MetricWriters:
    """Writes the same to each writer of a list, which may be empty."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        self._writers = tuple(writers)
        self._started = contextlib.ExitStack()

    def start(self, run: RunStart) -> None:
        """Starts the writers; those that were started are closed even if another fails."""
        with contextlib.ExitStack() as started:
            for writer in self._writers:
                writer.start(run)
                started.callback(writer.close)
            self._started = started.pop_all()

    def scalars(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Records values of a step.

        Args:
          kind: "train", "eval" or "speed".
          step: that has the values.
          values: numbers or arrays of one number, by their names.

        Raises:
          TypeError: a value is no number.
        """
        plain = {name: _plain(value) for name, value in values.items()}
        for writer in self._writers:
            writer.scalars(kind, step, dict(plain))

    def sync(self) -> None:
        """Returns when all writers have made safe what they recorded."""
        for writer in self._writers:
            writer.sync()

    def close(self) -> None:
        """Closes the writers that were started."""
        self._started.close()


class JsonlWriter:
    """A line of JSON for each call, in metrics.jsonl; each call flushes what it wrote."""

    def start(self, run: RunStart) -> None:
        """Opens the file, without the records of steps that are taken again."""
        path = run.workdir / METRICS
        _keep_until(path, {"train": run.step, "speed": run.step, "eval": run.evaluated})
        self._file = path.open("a")

    def scalars(self, kind: str, step: int, values: dict[str, int | float]) -> None:
        """Writes a line."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Returns when the file is on the disk, whatever happens to the machine."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardWriter:
    """Curves for TensorBoard, in the folder tensorboard; each call flushes what it wrote."""

    def start(self, run: RunStart) -> None:
        """Opens a file of events."""
        folder = run.workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Not SummaryWriter, whose thread dies where it cannot write (a full disk). Its queue then
        # blocks this thread for ever.
        self._board = EventsWriter(str(folder / "events"))
        # TensorBoard drops what an earlier process wrote of this step and later ones.
        started = SessionLog(status=SessionLog.START)
        self._event(Event(step=run.step, file_version="brain.Event:2"))
        self._event(Event(step=run.step, session_log=started))

    def scalars(self, kind: str, step: int, values: dict[str, int | float]) -> None:
        """Writes an event for each value, named such as train/loss."""
        for name, value in values.items():
            self._event(Event(step=step, summary=scalar(f"{kind}/{name}", value)))
        self._board.flush()

    def sync(self) -> None:
        """Does nothing: metrics.jsonl has the same numbers."""

    def close(self) -> None:
        """Closes the file."""
        self._board.close()

    def _event(self, event: Event) -> None:
        event.wall_time = time.time()
        self._board.write_event(event)


def _plain(value: Any) -> int | float:
    value = np.asarray(value).item()
    if isinstance(value, int | float):
        return value
    raise TypeError(f"a metric must be a number, got {value!r}")


def _keep_until(path: pathlib.Path, last: dict[str, int]) -> None:
    if not path.exists():
        return
    kept = []
    for text in path.read_text().splitlines():
        try:
            record = json.loads(text)
        except ValueError:  # the line that a killed process was writing
            continue
        if record["step"] <= last[record["kind"]]:
            kept.append(text)
    write_atomically(path, "".join(f"{text}\n" for text in kept))
