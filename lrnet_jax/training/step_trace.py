"""A trace of some steps of a run, by the profiler of JAX: what host and devices did, and when."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax


class StepTrace:
    """Traces consecutive steps, of those that the run takes.

    Every step is named for the profiler, traced or not, so that other programs which trace a run
    find its steps.
    """

    def __init__(self, folder: pathlib.Path, steps: range) -> None:
        """Traces nothing yet.

        Args:
          folder: where the trace goes, in a folder of its own with the time as its name.
          steps: numbers of the steps to trace; may be empty.
        """
        self._folder, self._steps = folder, steps
        self._first: int | None = None  # step of the trace that is being written
        self._last = 0

    @contextlib.contextmanager
    def step(self, number: int, *, after: Any) -> Iterator[None]:
        """A context in which the host takes a step.

        Args:
          number: of the step.
          after: arrays of the step before. A trace begins when they are computed.
        """
        if self._first is None and number in self._steps:
            jax.block_until_ready(after)
            # Perfetto reads a file of its own.
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._first = number
        self._last = number
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def is_complete(self) -> bool:
        """Whether the last of the steps was taken, and its trace is to be ended."""
        return self._first is not None and self._last + 1 not in self._steps

    def end(self, results: Any) -> str | None:
        """Writes the trace, if there is one that was not written yet.

        Args:
          results: arrays of the last step, which are waited for.

        Returns:
          What it shows, such as "steps 10 to 15"; None without a trace.
        """
        if self._first is None:
            return None
        first, self._first = self._first, None
        try:
            jax.block_until_ready(results)
        finally:
            jax.profiler.stop_trace()
        return f"steps {first} to {self._last}" if first < self._last else f"step {first}"
