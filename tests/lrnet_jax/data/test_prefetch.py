"""The background loader: order, how far ahead, errors, an orderly end."""

import itertools
import threading
import time

import pytest

from lrnet_jax.data.prefetch import prefetch


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_order_and_put():
    assert list(prefetch(iter(range(20)), lambda x: x * 10)) == list(range(0, 200, 10))
    assert not threads()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_stays_just_so_far_ahead(depth):
    loaded = []

    def batches():
        for batch in itertools.count():
            loaded.append(batch)
            yield batch

    with prefetch(batches(), lambda x: x, depth) as ready:
        wait_until(lambda: len(loaded) == depth)
        assert len(threads()) == 1
        assert next(ready) == 0
        wait_until(lambda: len(loaded) == depth + 1)
        time.sleep(0.02)
        assert len(loaded) == depth + 1
    assert not threads()


def test_loads_while_the_reader_works():
    release = threading.Event()

    def batches():
        yield 0
        release.set()
        yield 1

    with prefetch(batches(), lambda x: x) as ready:
        next(ready)
        assert release.wait(5)


@pytest.mark.parametrize("culprit", ["batches", "put"])
def test_an_exception_comes_after_the_good_batches(culprit):
    def batches():
        yield from (1, 2)
        if culprit == "batches":
            raise RuntimeError("bad image 3")
        yield 3

    def put(batch):
        if batch == 3:
            raise RuntimeError("bad image 3")
        return batch

    ready = prefetch(batches(), put)
    assert [next(ready), next(ready)] == [1, 2]
    with pytest.raises(RuntimeError, match="bad image 3"):
        next(ready)
    with pytest.raises(StopIteration):
        next(ready)
    assert not threads()


def test_close_closes_the_source_and_may_come_twice():
    closed = threading.Event()

    def batches():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    source = batches()  # kept, lest its end be that of the garbage
    ready = prefetch(source, lambda x: x)
    next(ready)
    ready.close()
    ready.close()
    assert closed.is_set()
    assert not threads()
    with pytest.raises(StopIteration):
        next(ready)


def test_an_exception_of_the_reader_closes():
    with pytest.raises(KeyError), prefetch(itertools.count(), lambda x: x) as ready:
        raise KeyError(next(ready))
    assert not threads()


def test_depth():
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        prefetch(iter(()), lambda x: x, 0)
