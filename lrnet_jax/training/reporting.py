"""What a run reports: a progress bar with ETA, a JSONL file, TensorBoard."""

import json
import os
import pathlib
import sys
import time
from typing import Any, TextIO

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from lrnet_jax.training.atomic import write_atomically

METRICS = "metrics.jsonl"


class Reporter:
    """Writes metrics of a run; each call flushes what it wrote.

    On a terminal it shows one progress bar. Elsewhere (a log file, CI) each call of `progress`
    prints a line with the time left.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        total_steps: int,
        first_step: int = 0,
        evaluated: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        """Opens the files of a workdir.

        Args:
          workdir: where metrics.jsonl and the TensorBoard files go.
          total_steps: of the whole run, for the ETA.
          first_step: the step from which this process trains: 0, or the step resumed from. Records
            of later steps, which a stopped process wrote after its last checkpoint, are dropped
            from the JSONL file, so that it has each step once.
          evaluated: the last evaluation that is not repeated; records of later ones are dropped.
          stream: where progress is shown; standard error by default.
        """
        self._stream = stream if stream is not None else sys.stderr
        self._total, self._first = total_steps, first_step
        self._start = time.monotonic()
        self._path = workdir / METRICS
        last = {"train": first_step, "speed": first_step, "eval": evaluated}
        _keep_until(self._path, last)
        self._file = self._path.open("a")
        # Not SummaryWriter, whose thread dies where it cannot write (a full disk). Its queue then
        # blocks this thread for ever.
        (workdir / "tensorboard").mkdir(exist_ok=True)
        self._board = EventsWriter(str(workdir / "tensorboard" / "events"))
        # TensorBoard drops what an earlier process wrote of this step and later ones.
        started = SessionLog(status=SessionLog.START)
        for event in (
            Event(step=first_step, file_version="brain.Event:2"),
            Event(step=first_step, session_log=started),
        ):
            self._event(event)
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total_steps, initial=first_step, unit="step", file=self._stream,
                dynamic_ncols=True, smoothing=0.05,
            )  # fmt: skip

    def scalars(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Records values of a step as JSONL and in TensorBoard.

        Args:
          kind: "train", "eval" or "speed".
          step: that has the values.
          values: numbers by their names.
        """
        values = {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._event(Event(step=step, summary=scalar(f"{kind}/{name}", value)))
        self._board.flush()

    def sync(self) -> None:
        """Returns when the JSONL file is on the disk, whatever happens to the machine."""
        os.fsync(self._file.fileno())

    def progress(self, step: int, text: str) -> None:
        """Shows the step, the time left and a short text with the current figures."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(text)
            return
        spent = time.monotonic() - self._start
        done = step - self._first
        left = spent / done * (self._total - step) if done else 0.0
        self.line(
            f"step {step}/{self._total} {100 * step / self._total:3.0f} %  {text}  "
            f"{done / spent if spent else 0:.2f} step/s  {duration(left)} left"
        )

    def line(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _event(self, event: Event) -> None:
        event.wall_time = time.time()
        self._board.write_event(event)

    def close(self) -> None:
        """Flushes and closes everything."""
        if self._bar is not None:
            self._bar.close()
        self._file.close()
        self._board.close()


class NullReporter:
    """Replaces `Reporter` in all processes of a run but the first."""

    def scalars(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Does nothing, like all other methods."""

    def sync(self) -> None:
        """Does nothing."""

    def progress(self, step: int, text: str) -> None:
        """Does nothing."""

    def line(self, text: str) -> None:
        """Does nothing."""

    def __enter__(self) -> "NullReporter":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def duration(seconds: float) -> str:
    """A time in two units at most: 45 s, 3 min 20 s, 2 h 05 min, 3 d 04 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600:02d} h"


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
