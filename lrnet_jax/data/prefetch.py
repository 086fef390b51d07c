"""Loads and transfers the next batches in a thread while a step runs on the device."""

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

Host = TypeVar("Host")
Device = TypeVar("Device")


class _Failure(NamedTuple):
    error: BaseException


class _End:
    pass


class Prefetch(Generic[Device]):
    """An iterator over `put(batch)` that stays up to `depth` batches ahead of its reader.

    Args:
      batches: read in one background thread, from the moment of construction.
      put: takes a batch and returns it on the device, called in that thread.
      depth: batches held ready. 2 hides a transfer behind a step; more only evens out slow batches.

    An exception of `batches` or `put` is raised by `next`, after the batches before it. `close`
    stops the thread and closes `batches` where it can be closed; leaving a `with` block calls it.
    """

    def __init__(
        self, batches: Iterator[Host], put: Callable[[Host], Device], depth: int = 2
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self._ready: queue.SimpleQueue[Device | _Failure | _End] = queue.SimpleQueue()
        # A permit per batch held ready; also what wakes the thread when it is told to stop.
        self._permits = threading.Semaphore(depth)
        self._stopped = threading.Event()
        self._finished = False
        self._thread = threading.Thread(
            target=self._run, args=(batches, put), name="prefetch", daemon=True
        )
        self._thread.start()

    def _run(self, batches: Iterator[Host], put: Callable[[Host], Device]) -> None:
        try:
            while True:
                self._permits.acquire()
                if self._stopped.is_set():
                    return
                try:
                    batch = next(batches)
                except StopIteration:
                    self._ready.put(_End())
                    return
                self._ready.put(put(batch))
        except BaseException as error:
            self._ready.put(_Failure(error))
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()

    def __iter__(self) -> "Prefetch[Device]":
        return self

    def __next__(self) -> Device:
        if self._finished:
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, _End | _Failure):
            self.close()
            if isinstance(item, _Failure):
                raise item.error
            raise StopIteration
        self._permits.release()
        return item

    def close(self) -> None:
        """Waits for the batch being loaded, then stops; the iterator is at its end afterwards."""
        self._finished = True
        self._stopped.set()
        self._permits.release()
        self._thread.join()

    def __enter__(self) -> "Prefetch[Device]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def prefetch(
    batches: Iterator[Host], put: Callable[[Host], Device], depth: int = 2
) -> Prefetch[Device]:
    """Iterates over `put(batch)`, loaded ahead in the background; see `Prefetch`."""
    return Prefetch(batches, put, depth)
