"""The command line of the input benchmark."""

import subprocess
import sys

import pytest

from experiments.bench import process_use

pytestmark = pytest.mark.skipif(not process_use.PROC.exists(), reason="needs /proc")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--pipelines=lrnet_jax,pytorch", "--pipelines has pytorch, which is none of lrnet_jax,"),
        ("--batch_size=0", "--batch_size=0: "),
        ("--data=fashion_mnist_subset", "is held in memory: nothing to measure"),
        ("--data=imagenet2012", "data set 'imagenet2012' is not prepared"),
    ],
)
def test_errors_end_in_one_line(tmp_path, argument, message):
    command = [sys.executable, "-m", "experiments.benchmark_input", argument]
    done = subprocess.run([*command, f"--data_dir={tmp_path}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
