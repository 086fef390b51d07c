"""How fast a run trains: images a second, the share of time that it waited for input, memory."""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax


class SpeedMeter:
    """Measures a run between two reports. What is no training is left out by `restart`."""

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts at step 0.

        Args:
          batch_size: images of a step over all devices.
          clock: seconds.
        """
        self._batch_size, self._clock = batch_size, clock
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begins to measure after a step, which is computed."""
        self._step, self._start, self._waited = step, self._clock(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which the run waits for its next batch."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    def measure(self, step: int) -> dict[str, float]:
        """What was measured up to a step, which is computed; then begins again.

        Returns:
          images_per_second, input_seconds that were waited, and on a GPU memory_gib, the most that
          a device of this process has held. Empty if there was no step.
        """
        steps, seconds = step - self._step, self._clock() - self._start
        waited = self._waited
        self.restart(step)
        if steps < 1 or seconds <= 0:
            return {}
        rate = steps * self._batch_size / seconds
        return {"images_per_second": rate, "input_seconds": waited, **_memory()}


def _memory() -> dict[str, float]:
    """The peak of the devices that count it; CPUs do not."""
    peaks = [
        (device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()
    ]
    known = [peak for peak in peaks if peak is not None]
    return {"memory_gib": max(known) / 2**30} if known else {}
