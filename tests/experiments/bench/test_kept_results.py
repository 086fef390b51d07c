"""Results of long measurements: kept at once, resumed, not lost to a failure."""

import json

import pytest

from experiments.bench.kept_results import KeptResults, Unit, run_units
from experiments.config import ConfigError


def test_what_is_there_is_not_measured_again(tmp_path):
    path = tmp_path / "gpu" / "h100.json"
    runs = []

    def unit(key, *, fails=False):
        def run():
            runs.append(key)
            if fails:
                raise RuntimeError("out of memory")
            return {"summary": key}

        return Unit(key, run)

    kept = KeptResults.read(path)
    run_units("kernels", [unit("a"), unit("b", fails=True), unit("c")], kept, seconds=60)
    assert runs == ["a", "b", "c"]
    assert json.loads(path.read_text())["kernels"]["b"] == {"error": "RuntimeError: out of memory"}

    kept = KeptResults.read(path)
    run_units("kernels", [unit("a"), unit("b"), unit("c")], kept, seconds=60)
    assert runs == ["a", "b", "c", "b"]  # only what had failed
    assert KeptResults.read(path).results["kernels"]["b"] == {"summary": "b"}
    kept.drop(["kernels"])
    assert not kept.has("kernels", "a")


@pytest.mark.parametrize(
    ("units", "line"),
    [
        ("", "steps: nothing to do on this machine"),
        ("bc", "steps: 2 of 2 to do"),
        ("ab", "steps: 1 of 2 to do, 1 kept from before (--again measures anew)"),
    ],
)
def test_the_first_line_says_what_is_left(tmp_path, capsys, units, line):
    kept = KeptResults.read(tmp_path / "x.json")
    kept.keep("steps", "a", {"summary": "a"})
    run_units("steps", [Unit(name, dict) for name in units], kept, seconds=60)
    assert capsys.readouterr().out.splitlines()[1] == line


def test_no_unit_starts_after_the_time_is_over(tmp_path, capsys):
    units = [Unit(name, dict) for name in "ab"]
    run_units("steps", units, KeptResults.read(tmp_path / "x.json"), seconds=-1)
    assert "time is over, 2 are left; rerun the same command" in capsys.readouterr().out
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}'])
def test_another_file_is_not_overwritten(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json holds no results"):
        KeptResults.read(path)
