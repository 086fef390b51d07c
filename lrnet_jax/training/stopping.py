"""SIGTERM and SIGINT request a stop, which a run makes at the end of a step."""

import contextlib
import os
import signal
import types
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Notices SIGTERM and SIGINT while it is entered, and answers on standard error at once.

    A second SIGINT has its usual effect, because a person at the terminal insists. Further SIGTERMs
    do nothing, because schedulers repeat them while the run saves.

    Attributes:
      name: of the signal that came, such as "SIGTERM", or None.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.name is not None

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None where a handler was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _notice(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if self.name is None:
            self._answer(number)
        self.name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._before[signal.SIGINT] or signal.SIG_DFL)

    @staticmethod
    def _answer(number: int) -> None:
        """Says that the signal is noticed, because a step may take seconds."""
        name = signal.Signals(number).name
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        # On a terminal the line of the cursor has a progress bar and "^C", which are erased.
        before = "\r\x1b[K" if os.isatty(2) else "\n"
        # Not by print, which may be at work in the line that was interrupted, and would raise.
        with contextlib.suppress(OSError):  # nobody may read standard error any more
            os.write(2, f"{before}{name}: saving after this step{again}\n".encode())
