"""One child process at a time, which gets the signals that end this one."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Sequence
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Child:
    """One process at a time, to which SIGINT and SIGTERM are forwarded.

    Attributes:
      stopped: whether a signal has come.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str]) -> int:
        """Runs a command to its end and returns its exit code."""
        # The child gets a session of its own, otherwise Ctrl-C in a terminal reaches it twice.
        with subprocess.Popen(command, start_new_session=True) as self._process:
            return self._process.wait()

    @contextlib.contextmanager
    def forward_signals(self) -> Iterator[None]:
        """A context in which SIGINT and SIGTERM go to the process and set `stopped`."""

        def forward(number: int, frame: FrameType | None) -> None:
            self.stopped = True
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(number)

        handlers = {number: signal.signal(number, forward) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
