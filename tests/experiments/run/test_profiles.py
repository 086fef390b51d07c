"""Which steps of a run may be traced, and what is said of the trace."""

import gzip

import pytest

from experiments.config import ConfigError
from experiments.run.profiles import check_steps, describe_past, describe_trace


@pytest.mark.parametrize("steps", [range(0), range(1, 2), range(10, 16), range(901, 1001)])
def test_steps_that_a_run_has(steps):
    check_steps(steps, 1000)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (range(995, 1002), "--profile_steps ends with step 1001, and the run has 1000 steps"),
        (range(10, 210), "200 steps make a trace that no viewer opens; use 10:15, or 100 at most"),
    ],
)
def test_steps_that_cannot_be_traced(steps, message):
    with pytest.raises(ConfigError, match=message):
        check_steps(steps, 1000)


def test_a_run_behind_its_steps_says_so():
    assert not list(describe_past(range(0), 20))
    assert not list(describe_past(range(10, 16), 14))
    assert list(describe_past(range(10, 16), 15)) == [
        "--profile_steps: step 15 was taken before; nothing is traced"
    ]


def test_commands_that_open_the_newest_trace(tmp_path):
    for name in ("2026_11_30_05_15_27", "2026_12_01_04_00_00"):
        folder = tmp_path / "profile/plugins/profile" / name
        folder.mkdir(parents=True)
        (folder / "perfetto_trace.json.gz").write_bytes(gzip.compress(b"{}"))
    first, server, file = describe_trace("steps 10 to 15", tmp_path)
    assert first == f"trace of steps 10 to 15: {tmp_path}/profile; to look at it"
    assert f"-m xprof.server --logdir={tmp_path}/profile" in server
    assert f"open {folder}/perfetto_trace.json.gz at https://ui.perfetto.dev" in file
