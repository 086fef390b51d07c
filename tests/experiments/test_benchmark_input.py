"""The input benchmark: what it counts, and a round of it."""

import multiprocessing
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import benchmark_input
from experiments.bench import input_pipelines

pytestmark = pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="needs /proc")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def burn(connection, seconds, size):
    block = np.ones(size, np.uint8)
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
    connection.send(block.size)
    connection.recv()


def test_processes_below_this_one_count():
    """A child that computes for 0.4 s and holds 50 MB, while it lives and after it has ended."""
    spent, used = benchmark_input.cpu_seconds(), benchmark_input.memory()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(
        target=burn, args=(theirs, 0.4, 50_000_000)
    )
    child.start()
    ours.recv()
    assert child.pid in [int(folder.name) for folder in benchmark_input.processes()]
    assert 0.4 <= benchmark_input.cpu_seconds() - spent < 30
    assert benchmark_input.memory() - used > 50_000_000
    ours.send(None)
    child.join()
    assert benchmark_input.cpu_seconds() - spent >= 0.4
    assert benchmark_input.memory() - used < 50_000_000


def test_photographs_weigh_what_imagenets_do(tmp_path):
    split = input_pipelines.photographs(tmp_path, copies=2)
    examples = [split.example(index) for index in range(8)]
    assert [example.label for example in examples] == [0, 1, 2, 3] * 2
    assert np.mean([len(example.encoded) for example in examples]) == pytest.approx(94e3, rel=0.05)
    assert {split.decode(i, example).size for i, example in enumerate(examples)} == {(477, 403)}


@pytest.mark.parametrize("name", ["lrnet_jax", "grain_pillow", "torchvision", "tf_data"])
def test_a_round(tmp_path, name):
    split = input_pipelines.photographs(tmp_path, copies=2)
    if input_pipelines.left_out(name, split):
        pytest.skip(input_pipelines.left_out(name, split))
    (result,) = benchmark_input.compare(
        split, [name], batch_size=4, workers=1, batches=30, rounds=1
    )
    assert result["pipeline"] == name
    # A crop takes between a fifth of a millisecond and half a second on any machine.
    assert 2 < result["per_cpu_second"][0] < 5000
    assert 2 < result["per_second"][0] < 5000


def test_a_pipeline_that_fails_is_named(tmp_path):
    split = input_pipelines.photographs(tmp_path, copies=1)
    with pytest.raises(RuntimeError, match="no_such ended early"):
        benchmark_input.compare(split, ["no_such"], batch_size=4, workers=1, batches=1, rounds=1)


def test_the_table_says_how_many_cores_feed_a_rate():
    result = {"pipeline": "ours", "per_second": [500, 700, 600], "per_cpu_second": [310, 330, 300]}
    assert benchmark_input.table([result], [2500, 300]).splitlines()[-1] == (
        "| ours | 310 (300 to 330) | 600 | 9 | 1 |"
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--pipelines=lrnet_jax,pytorch", "--pipelines has pytorch, which is none of lrnet_jax,"),
        ("--batch_size=0", "--batch_size must be at least 1, got 0"),
        ("--data=fashion_mnist_subset", "is held in memory: nothing to measure"),
        ("--data=imagenet2012", "data set 'imagenet2012' is not prepared"),
    ],
)
def test_slips_end_in_a_message(tmp_path, argument, message):
    command = [sys.executable, "-m", "experiments.benchmark_input", argument]
    done = subprocess.run([*command, f"--data_dir={tmp_path}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
