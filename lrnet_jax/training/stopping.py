"""SIGTERM and SIGINT request a stop, which a run makes at the end of a step."""

import contextlib
import os
import signal
import threading
import types
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130  # exit code of a process that SIGINT ends
PATIENCE = 1.0  # seconds until a second SIGINT ends a process that does not notice it


class StopRequest:
    """Notices SIGTERM and SIGINT while it is entered, and answers on standard error at once.

    A second SIGINT has its usual effect, because a person at the terminal insists. Further SIGTERMs
    do nothing, because schedulers repeat them while the run saves.

    Python handles signals in the main thread and between two of its own instructions. XLA compiles
    for minutes in between. A thread therefore reads the signals too, as they come: it gives the
    answer, and after a second SIGINT it ends the process as `kill -9` would.

    Attributes:
      name: of the signal that came, such as "SIGTERM", or None.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._unanswered = threading.Lock()  # taken by the thread that answers
        self._interrupts = [0, 0]  # that this thread has noticed, and the other one has read
        self._interrupted = threading.Event()  # the main thread has noticed the second

    def __bool__(self) -> bool:
        return self.name is not None

    def __enter__(self) -> "StopRequest":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._notice)
        self._descriptor = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(self._descriptor)
        for number, handler in self._before.items():
            # None where a handler was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.write(self._writer, b"\0")  # ends the thread
        self._thread.join()
        os.close(self._writer)
        os.close(self._reader)

    def _notice(self, number: int, frame: types.FrameType | None) -> None:
        """Runs in the main thread, once for all signals that came since it last looked."""
        self._answer(number)
        self.name = signal.Signals(number).name
        self._interrupts[0] += number == signal.SIGINT
        usual = self._before[signal.SIGINT]
        if number == signal.SIGINT and max(self._interrupts) > 1:
            self._interrupted.set()
            if callable(usual):
                usual(number, frame)
            elif usual != signal.SIG_IGN:
                raise KeyboardInterrupt

    def _listen(self) -> None:
        """Runs in a thread of its own."""
        while number := os.read(self._reader, 1)[0]:
            if number in SIGNALS:
                self._answer(number)
            self._interrupts[1] += number == signal.SIGINT
            insists = self._interrupts[1] > 1 and self._before[signal.SIGINT] != signal.SIG_IGN
            if insists and not self._interrupted.wait(PATIENCE):
                with contextlib.suppress(OSError):
                    os.write(2, b"\ninterrupted\n")
                os._exit(INTERRUPTED)

    def _answer(self, number: int) -> None:
        """Says that the first signal is noticed, because a step may take seconds."""
        if not self._unanswered.acquire(blocking=False):
            return
        name = signal.Signals(number).name
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        # On a terminal the line of the cursor has a progress bar and "^C", which are erased.
        before = "\r\x1b[K" if os.isatty(2) else "\n"
        # Not by print, which may be at work in the line that was interrupted, and would raise.
        with contextlib.suppress(OSError):  # nobody may read standard error any more
            os.write(2, f"{before}{name}: saving after this step{again}\n".encode())
