"""When a save is due by time."""

import time


class SaveClock:
    """Says when a save is due by time. Jumps of the wall clock do not matter."""

    def __init__(self, minutes: float) -> None:
        """Starts the clock; with 0 minutes no save is ever due."""
        self._seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """Counts from now on."""
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether the time is over."""
        return bool(self._seconds) and time.monotonic() - self._last >= self._seconds
