"""Loads and transfers the next batches in a thread while a step runs on the device."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Host = TypeVar("Host")
Device = TypeVar("Device")


class Prefetch(Generic[Device]):
    """An iterator over `put(batch)` that stays up to `depth` batches ahead of its reader.

    Args:
      batches: read in one background thread, from the moment of construction.
      put: takes a batch and returns it on the device, called in that thread.
      depth: batches held ready. 2 hides a transfer behind a step; more only evens out slow batches.

    `next` raises the exceptions of `batches` and `put`, after the batches before them. `close`
    stops the thread and closes `batches` where they have a `close`; leaving a `with` block calls
    it.
    """

    def __init__(
        self, batches: Iterator[Host], put: Callable[[Host], Device], depth: int = 2
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self._batches = batches
        self._load: Callable[[], Device] = lambda: put(next(batches))
        # One thread, so that batches are loaded in order.
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "prefetch")
        self._ready = collections.deque(self._executor.submit(self._load) for _ in range(depth))

    def __iter__(self) -> "Prefetch[Device]":
        return self

    def __next__(self) -> Device:
        if not self._ready:
            raise StopIteration
        try:
            batch = self._ready.popleft().result()
        except BaseException:  # StopIteration at the end of the batches
            self.close()
            raise
        self._ready.append(self._executor.submit(self._load))
        return batch

    def close(self) -> None:
        """Waits for the batch being loaded, then stops; the iterator is at its end afterwards."""
        self._ready.clear()
        self._executor.shutdown(cancel_futures=True)
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> "Prefetch[Device]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def prefetch(
    batches: Iterator[Host], put: Callable[[Host], Device], depth: int = 2
) -> Prefetch[Device]:
    """Iterates over `put(batch)`, loaded ahead in the background; see `Prefetch`."""
    return Prefetch(batches, put, depth)
