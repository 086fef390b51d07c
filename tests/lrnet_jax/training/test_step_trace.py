"""Traces of steps, read as Perfetto reads them."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from lrnet_jax.training.step_trace import StepTrace


def traced(folder):
    """The numbers of the steps in each trace below a folder."""
    found = []
    for path in sorted(folder.rglob("perfetto_trace.json.gz")):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
        assert all("ts" in event for event in events if event.get("ph") == "X")
        found.append(sorted(map(int, steps)))
    return found


@jax.jit
def work(x):
    return x + 1


def take(trace, first, last):
    """Takes steps, and ends the trace when it is complete: what that says."""
    said, x = [], jnp.zeros(())
    for number in range(first, last + 1):
        with trace.step(number, after=x):
            x = work(x)
        if trace.is_complete():
            said.append(trace.end(x))
    return said


def test_the_steps_that_were_asked_for_are_in_the_trace(tmp_path):
    trace = StepTrace(tmp_path, range(3, 6))
    assert take(trace, 1, 8) == ["steps 3 to 5"]
    assert traced(tmp_path) == [[3, 4, 5]]
    assert trace.end(None) is None


def test_a_run_that_begins_within_the_steps_traces_the_rest(tmp_path):
    assert take(StepTrace(tmp_path, range(3, 6)), 5, 8) == ["step 5"]
    assert traced(tmp_path) == [[5]]


@pytest.mark.parametrize("steps", [range(0), range(1, 3)])
def test_a_run_without_these_steps_writes_nothing(tmp_path, steps):
    trace = StepTrace(tmp_path / "profile", steps)
    assert take(trace, 3, 4) == []
    assert trace.end(None) is None
    assert not (tmp_path / "profile").exists()


def test_a_run_that_fails_leaves_what_it_traced(tmp_path):
    trace = StepTrace(tmp_path, range(1, 6))
    take(trace, 1, 2)
    with pytest.raises(ZeroDivisionError), trace.step(3, after=None):
        raise ZeroDivisionError
    assert trace.end(None) == "steps 1 to 3"
    assert traced(tmp_path) == [[1, 2, 3]]
    take(StepTrace(tmp_path / "next", range(1, 2)), 1, 2)  # the profiler is free again


def test_a_failure_on_the_device_does_not_keep_the_trace_open(tmp_path, monkeypatch):
    trace = StepTrace(tmp_path, range(1, 6))
    take(trace, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "block_until_ready", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trace.end(None)
    assert trace.end(None) is None
    assert traced(tmp_path) == [[1, 2]]
