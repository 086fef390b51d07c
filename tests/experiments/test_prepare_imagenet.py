"""The command line of the preparation of ImageNet."""

import subprocess
import sys


def test_errors_end_in_one_line(tmp_path):
    """A missing tar, or no TensorFlow where it is not installed."""
    command = [sys.executable, "-m", "experiments.prepare_imagenet"]
    command += [f"--manual_dir={tmp_path}", f"--data_dir={tmp_path}/data"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "pip install" in last or "is missing; get it" in last
