"""The benchmark measures what it says, and its command line answers."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.tools import benchmark
from pallas_kernels.tools.shapes import SHAPES


def test_interleave_runs_in_turn(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    order = []

    def program(name, seconds):
        def run():
            order.append(name)
            clock[0] += next(seconds)

        return run

    timings = benchmark.interleave(
        {"a": program("a", iter([9, 1, 2, 3, 4, 5])), "b": program("b", iter([9, 2, 2, 2, 2, 2]))},
        rounds=5,
    )
    assert order == ["a", "b"] * 6
    assert timings["a"] == benchmark.Timing(least=1, lower=2, median=3, upper=4)  # 9 warms up
    assert timings["b"].median == 2


def test_interleave_needs_two_rounds():
    with pytest.raises(ValueError, match="at least 2"):
        benchmark.interleave({}, rounds=1)


def test_prepare_reports_temporary_memory():
    x = jnp.ones((256, 256))
    program = benchmark.prepare(lambda x: jnp.sort(x @ x, axis=0) @ x, x)
    np.testing.assert_array_equal(program.run(), np.full((256, 256), 256.0**2))
    assert program.temp_bytes >= x.nbytes


def test_measure_compares_all_contestants():
    shape = SHAPES["odd/fewer_channels_than_group"]
    records = benchmark.measure(shape, rounds=2)
    names = {"reference", "xla", "dense_3x3", "depthwise_7x7"}
    for direction in benchmark.PASSES:
        assert names <= {r["name"] for r in records if r["direction"] == direction}
    text = benchmark.table(records)
    assert len(text.splitlines()) == len(records)
    assert " 1.000 " in text.splitlines()[0]


def test_sums_of_whole_networks():
    def record(shape, seconds, temp):
        return {
            "shape": shape,
            "name": "xla",
            "direction": "forward",
            "seconds": {"median": seconds},
            "temp_bytes": temp,
            "compile_seconds": 1.0,
        }

    records = [record(name, 1.0, 5) for name in SHAPES if name.startswith("lrnet50/")]
    assert benchmark.whole_networks(records) == []  # the stem is missing
    records.append(record("stem", 10.0, 7))
    [total] = benchmark.whole_networks(records)
    assert total["shape"] == "lrnet50, 17 layers"
    assert total["seconds"]["median"] == 26.0
    assert total["temp_bytes"] == 7


def test_convolutions_have_the_output_of_the_local_relation():
    for shape in (SHAPES["odd/stride3"], SHAPES["odd/partial_group"]):
        names = ["xla", *benchmark.CONVOLUTIONS]
        for run, arrays in benchmark.contestants(shape, jnp.float32, names).values():
            assert run(*arrays).shape == shape.out


def test_command_line(tmp_path, capsys):
    file = tmp_path / "out.json"
    benchmark.main(
        ["--shapes=odd/single_*", "--implementations=xla", "--rounds=2", f"--json={file}"]
    )
    assert "odd/single_pixel" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert [r["direction"] for r in result["records"]] == list(benchmark.PASSES)
    assert result["machine"]["platform"] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes=lrnet27/*"], "no shape matches 'lrnet27/\\*'; there are stem,"),
        (["--shapes=stem", "--implementations=xlb"], "got 'xlb'"),
        (["--shapes=stem", "--rounds=1"], "at least 2"),
    ],
)
def test_command_line_errors(arguments, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert re.search(message, capsys.readouterr().err)
