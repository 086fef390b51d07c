"""Programs are timed in turn, and their memory is that of the compiler."""

import gc

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.tools import timing


def test_interleave_runs_in_turn(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing.time, "process_time", lambda: 10 * clock[0])
    order = []

    def program(name, seconds):
        def run():
            order.append(name)
            clock[0] += next(seconds)

        return run

    timings = timing.interleave(
        {"a": program("a", iter([9, 1, 2, 3, 4, 5])), "b": program("b", iter([9, 2, 2, 2, 2, 2]))},
        rounds=5,
    )
    assert order == ["a", "b"] * 6
    assert timings["a"] == timing.Timing(least=1, lower=2, median=3, upper=4, cpu=30)
    # The first run, of 9 seconds, is not counted.
    assert timings["b"].median == 2


def test_the_second_of_two_runs_counts_where_they_are_warm(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    seconds = iter([9, 9, 7, 1, 8, 2])

    def run():
        clock[0] += next(seconds)

    timings = timing.interleave({"a": run}, rounds=2, warm=True)
    assert (timings["a"].least, timings["a"].upper) == (1, 1.75)


def test_pythons_collector_waits_until_the_end(monkeypatch):
    monkeypatch.setattr(timing.gc, "collect", lambda: None)
    found = []
    timing.interleave({"a": lambda: found.append(gc.isenabled())}, rounds=2)
    assert (found, gc.isenabled()) == ([False] * 3, True)

    def fail():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        timing.interleave({"a": fail}, rounds=2)
    assert gc.isenabled()


def test_interleave_needs_two_rounds():
    with pytest.raises(ValueError, match="at least 2"):
        timing.interleave({}, rounds=1)


def test_prepare_reports_temporary_memory():
    x = jnp.ones((256, 256))
    program = timing.prepare(lambda x: jnp.sort(x @ x, axis=0) @ x, x)
    np.testing.assert_array_equal(program.run(), np.full((256, 256), 256.0**2))
    assert program.temp_bytes >= x.nbytes
