"""What a run writes."""

import json
import struct
import time

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from lrnet_jax.training.metric_writers import (
    METRICS,
    JsonlWriter,
    MetricWriters,
    RunStart,
    TensorBoardWriter,
    missing_methods,
)


class Kept:
    """Keeps the calls in a list that writers may share."""

    def __init__(self, calls, fails=None):
        self.calls, self.fails = calls, fails

    def note(self, name, *rest):
        self.calls.append((name, *rest))
        if name == self.fails:
            raise OSError(name)

    def start(self, run):
        self.note("start", run.step)

    def scalars(self, kind, step, values):
        self.note(kind, step, values)
        values.clear()  # what one writer does to its values is nothing to the next

    def sync(self):
        self.note("sync")

    def close(self):
        self.note("close")


def records(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def events(folder):
    """The events of all TensorBoard files, in the order of the files' records."""
    for path in sorted((folder / "tensorboard").glob("events*"), key=lambda path: path.name):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


@pytest.mark.parametrize("writer", [JsonlWriter, TensorBoardWriter, lambda: Kept([])])
def test_the_protocol(writer):
    assert missing_methods(writer()) == []


def test_what_is_no_writer_is_told_what_it_lacks():
    class Half:
        def start(self, run):
            pass

        close = None

    assert missing_methods(Half()) == ["scalars", "sync", "close"]


def test_each_writer_gets_each_value(tmp_path):
    calls = []
    metrics = MetricWriters([Kept(calls), Kept(calls)])
    metrics.start(RunStart(tmp_path, {}, step=3))
    metrics.scalars("train", 4, {"loss": 2.5})
    metrics.sync()
    metrics.close()
    one = [("start", 3), ("train", 4, {}), ("sync",), ("close",)]
    assert calls == [call for call in one for _ in range(2)]


def test_no_writer_is_an_empty_list(tmp_path):
    metrics = MetricWriters([])
    metrics.start(RunStart(tmp_path, {}))
    metrics.scalars("train", 1, {"loss": 1.0})
    metrics.sync()
    metrics.close()
    assert not list(tmp_path.iterdir())


def test_a_writer_that_fails_leaves_none_open(tmp_path):
    calls = []
    metrics = MetricWriters([Kept(calls), Kept(calls, fails="start")])
    with pytest.raises(OSError, match="start"):
        metrics.start(RunStart(tmp_path, {}))
    metrics.close()
    assert calls == [("start", 0), ("start", 0), ("close",)]

    calls.clear()
    metrics = MetricWriters([Kept(calls), Kept(calls, fails="close")])
    metrics.start(RunStart(tmp_path, {}))
    with pytest.raises(OSError, match="close"):
        metrics.close()
    assert calls[2:] == [("close",), ("close",)]


def write(folder, steps, *, start=0, evaluated=0, loss=float):
    metrics = MetricWriters([JsonlWriter(), TensorBoardWriter()])
    metrics.start(RunStart(folder, {}, step=start, evaluated=evaluated))
    for step in steps:
        metrics.scalars("train", step, {"loss": loss(step)})
        metrics.scalars("eval", step, {"top1": 0.0})
    metrics.close()


def test_a_resumed_run_writes_each_step_once(tmp_path):
    write(tmp_path, range(1, 6))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "train", "st')  # killed in the middle of a line
    write(tmp_path, [4], start=3, evaluated=2, loss=lambda step: -float(step))
    train = [record for record in records(tmp_path) if record["kind"] == "train"]
    assert [(r["step"], r["loss"]) for r in train] == [(1, 1), (2, 2), (3, 3), (4, -4)]
    assert [r["step"] for r in records(tmp_path) if r["kind"] == "eval"] == [1, 2, 4]


def test_tensorboard_has_the_values_and_drops_those_that_are_taken_again(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1.8e9)  # part of the name of a file
    write(tmp_path, [1, 2])
    found = [event for event in events(tmp_path) if event.summary.value]
    assert [(event.step, event.summary.value[0].tag) for event in found] == [
        (1, "train/loss"), (1, "eval/top1"), (2, "train/loss"), (2, "eval/top1"),
    ]  # fmt: skip
    assert found[2].summary.value[0].simple_value == 2.0
    monkeypatch.setattr(time, "time", lambda: 1.8e9 + 60)
    write(tmp_path, [2], start=1)
    starts = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts == [0, 1]


def test_a_metric_that_is_no_number_is_refused(tmp_path):
    metrics = MetricWriters([JsonlWriter()])
    metrics.start(RunStart(tmp_path, {}))
    with pytest.raises(TypeError, match="must be a number, got 'nan'"):
        metrics.scalars("train", 1, {"loss": "nan"})
    metrics.close()
