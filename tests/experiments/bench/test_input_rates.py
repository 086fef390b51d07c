"""A round of the input benchmark, and its table."""

import pytest

from experiments.bench import input_pipelines, process_use
from experiments.bench.input_files import open_split, write_photographs
from experiments.bench.input_rates import Rates, measure_rates, rate_table

pytestmark = pytest.mark.skipif(not process_use.PROC.exists(), reason="needs /proc")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("lrnet_jax", None),
        ("grain_pillow", "folder"),
        ("torchvision", None),
        ("tf_data", None),
    ],
)
def test_a_round_has_plausible_rates(tmp_path, name, data):
    split = open_split(data, None, tmp_path)
    if input_pipelines.left_out(name, split):
        pytest.skip(input_pipelines.left_out(name, split))
    (result,) = measure_rates(split, [name], batch_size=4, workers=1, batches=30, rounds=1)
    assert result.pipeline == name
    # A crop takes between a fifth of a millisecond and half a second on any machine.
    assert 2 < result.per_cpu_second[0] < 5000
    assert 2 < result.per_second[0] < 5000


def test_tf_data_reads_records_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(input_pipelines.importlib.util, "find_spec", lambda name: name)
    assert input_pipelines.left_out("tf_data", open_split(None, None, tmp_path)) is None
    reason = input_pipelines.left_out("tf_data", open_split("folder", None, tmp_path))
    assert reason == "this one reads TFRecord files only"


def test_a_pipeline_that_fails_is_named(tmp_path):
    split = write_photographs(tmp_path, copies=1)
    with pytest.raises(RuntimeError, match="no_such ended early"):
        measure_rates(split, ["no_such"], batch_size=4, workers=1, batches=1, rounds=1)


def test_the_table_has_the_cores_that_reach_a_rate():
    result = Rates("ours", per_second=[500, 700, 600], per_cpu_second=[310, 330, 300])
    assert rate_table([result], [2500, 300]).markdown().splitlines()[-1] == (
        "| ours | 310 (300 to 330) | 600 | 9 | 1 |"
    )
