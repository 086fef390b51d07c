"""The benchmark measures all contestants; its command line prints and checks."""

import json
import re

import jax.numpy as jnp
import pytest

from pallas_kernels.tools import benchmark
from pallas_kernels.tools.shapes import SHAPES
from pallas_kernels.tools.timing import Timing


def test_measure_compares_all_contestants():
    shape = SHAPES["odd/fewer_channels_than_group"]
    records = benchmark.measure(shape, rounds=2)
    names = {"reference", "xla", "dense_3x3", "depthwise_7x7"}
    for direction in benchmark.PASSES:
        assert names <= {r.name for r in records if r.direction == direction}
    lines = benchmark.table(records).splitlines()
    assert len(lines) == len(records) + len(benchmark.PASSES)
    assert lines[0].startswith(f"{records[0].shape}, forward ")
    assert lines[1].split()[0] == records[0].name
    assert lines[1].split()[3] == "1.000"


def test_sums_of_whole_networks():
    def record(shape, seconds, temp):
        timing = Timing(seconds, lower=seconds, median=seconds, upper=2 * seconds, cpu=3 * seconds)
        return benchmark.Record(shape, "xla", "forward", timing, temp, compile_seconds=1.0)

    records = [record(name, 1.0, 5) for name in SHAPES if name.startswith("lrnet50/")]
    assert benchmark.whole_networks(records) == []  # the stem is missing
    records.append(record("stem", 10.0, 7))
    [total] = benchmark.whole_networks(records)
    assert total.shape == "lrnet50, 17 layers"
    assert total.seconds == Timing(least=26.0, lower=26.0, median=26.0, upper=52.0, cpu=78.0)
    assert total.temp_bytes == 7


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
    keys = ["shape", "name", "direction", "seconds", "temp_bytes", "compile_seconds"]
    assert list(result["records"][0]) == keys
    assert list(result["records"][0]["seconds"]) == ["least", "lower", "median", "upper", "cpu"]
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


@pytest.mark.parametrize(("dtype", "channels"), [("bfloat16", 104), ("float32", 100)])
def test_tiles_are_tuned_for_what_a_network_runs(dtype, channels, monkeypatch):
    tuned = []
    monkeypatch.setattr(benchmark, "tune", lambda shapes, *_, **options: tuned.extend(shapes))
    monkeypatch.setattr(benchmark, "check_names", lambda shape, names: names)  # needs no GPU
    arguments = f"--tune --implementations=pallas --shapes=lrnet50/res2 --dtype={dtype} --batch=8"
    benchmark.main(arguments.split())
    assert [(shape.channels, shape.batch) for shape in tuned] == [(channels, 8)]
