"""What a run writes and says."""

import io
import json

import pytest

from lrnet_jax.training.reporting import METRICS, Reporter, duration


def records(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def test_a_resumed_run_writes_each_step_once(tmp_path):
    first = Reporter(tmp_path, total_steps=10, stream=io.StringIO())
    for step in range(1, 6):
        first.scalars("train", step, {"loss": float(step)})
    first.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "train", "st')  # killed in the middle of a line

    second = Reporter(tmp_path, total_steps=10, first_step=3, stream=io.StringIO())
    second.scalars("train", 4, {"loss": -4.0})
    second.close()
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, -4)]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    stream = io.StringIO()
    reporter = Reporter(tmp_path, total_steps=200, stream=stream)
    reporter.progress(50, "loss 1.0")
    reporter.close()
    assert "step 50/200  25 %  loss 1.0" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("left")


def test_a_bar_on_a_terminal(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    reporter = Reporter(tmp_path, total_steps=200, stream=stream)
    reporter.progress(50, "loss 1.0")
    reporter.line("a line beside the bar")
    reporter.close()
    assert "50/200" in stream.getvalue()
    assert "loss 1.0" in stream.getvalue()
    assert "a line beside the bar\n" in stream.getvalue()


def test_a_metric_that_is_no_number_is_refused(tmp_path):
    reporter = Reporter(tmp_path, total_steps=1, stream=io.StringIO())
    with pytest.raises(TypeError, match="must be a number, got 'nan'"):
        reporter.scalars("train", 1, {"loss": "nan"})
    reporter.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(44.6, "45 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (3 * 86400 + 4 * 3600, "3 d 04 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
