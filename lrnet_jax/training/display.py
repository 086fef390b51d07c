"""What a run shows while it trains: a progress bar on a terminal, and lines elsewhere."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

_ERASE = "\r\x1b[K"  # the line of the cursor
_MARGIN = 3  # columns that stay free: "^C" of a terminal is then on the same line, and erased
_SHORTEST, _LONGEST = 8, 40  # cells of the bar


class Display:
    """Shows the step, the time left and figures.

    On a terminal this is one line at the bottom, with as many of the figures as its width allows.
    Elsewhere (a log file, CI) each call of `progress` prints a line with all of them.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        total_steps: int,
        first_step: int = 0,
        is_terminal: bool,
        columns: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Draws nothing yet.

        Args:
          stream: where it is shown.
          total_steps: of the whole run.
          first_step: the step from which this process trains.
          is_terminal: whether a bar is drawn.
          columns: the width of the terminal; by default it is asked each time.
          clock: seconds.
        """
        self._stream, self._bar = stream, is_terminal
        self._total, self._step = total_steps, first_step
        self._columns = columns or (lambda: _columns(stream))
        self._clock = clock
        self._figures: Sequence[str] = ()
        # The time left is that of the steps after the first, which compiles.
        self._start_step, self._start, self._spent = first_step, clock(), 0.0

    def restart(self, step: int) -> None:
        """Reckons the time left from this step on, which is computed."""
        self._step, self._start_step, self._start = step, step, self._clock()

    @contextlib.contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """A context whose text stands on the bar in place of the figures."""
        before, self._figures = self._figures, (text,)
        if self._bar:
            self._draw()
        yield
        self._figures = before

    def progress(self, step: int, figures: Sequence[str]) -> None:
        """Shows a step, which is computed, with its figures, the most important first."""
        self._step, self._figures = step, figures
        self._spent = self._clock() - self._start
        if self._bar:
            self._draw()
        else:
            parts = [f"step {self._count()}", self._percent(), *figures, self._left()]
            self.line("  ".join(filter(None, parts)))

    def line(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        # In one piece: the answer to a signal, which another thread writes, erases a started line.
        self._stream.write(f"{_ERASE if self._bar else ''}{text}\n")
        self._stream.flush()
        if self._bar:
            self._draw()

    def close(self) -> None:
        """Leaves the bar as it is; what is printed from now on is below it."""
        if self._bar:
            self._draw()
            self._bar = False
            print(file=self._stream, flush=True)

    def _draw(self) -> None:
        self._stream.write(_ERASE + self._text(self._columns() - _MARGIN))
        self._stream.flush()

    def _text(self, width: int) -> str:
        """The line of the bar, at most `width` characters."""
        head, tail = f"{self._percent()} ", "  ".join(filter(None, [self._count(), self._left()]))
        room = width - len(head) - len(tail) - len("|| ")
        with_bar = room >= _SHORTEST
        if not with_bar:
            room += len("|| ") + _SHORTEST
        for figure in self._figures:
            if room - len(figure) - 2 < _SHORTEST:
                break
            room -= len(figure) + 2
            tail += f"  {figure}"
        bar = self._cells(min(room, _LONGEST)) if with_bar else ""
        return (head + bar + tail)[: max(width, 0)]

    def _cells(self, count: int) -> str:
        full = round(count * self._step / self._total)
        mark = "█" if (self._stream.encoding or "").lower().startswith("utf") else "#"
        return f"|{mark * full}{' ' * (count - full)}| "

    def _percent(self) -> str:
        return f"{100 * self._step // self._total:3d} %"

    def _count(self) -> str:
        return f"{self._step}/{self._total}"

    def _left(self) -> str:
        done, left = self._step - self._start_step, self._total - self._step
        if not left:
            return ""
        if not done:
            return f"{left} steps left"
        return f"{duration(self._spent / done * left)} left"


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


def _columns(stream: TextIO) -> int:
    try:
        found = os.get_terminal_size(stream.fileno()).columns
    except OSError:
        found = 0
    return found or shutil.get_terminal_size().columns
