"""How commands end, and what of the package's own messages they show."""

import subprocess
import sys

import pytest

PROGRAM = """
import logging
from experiments.cli import command_line
from lrnet_jax import data

def main():
    {body}

command_line.run(main)
"""


def run(body):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)], capture_output=True, text=True
    )


def test_replaced_images_are_told_and_the_affairs_of_others_are_not():
    done = run(
        'logging.getLogger("lrnet_jax.data.imagenet").warning("replaced bad image"); '
        'logging.getLogger("orbax").warning("saving"); logging.warning("something")'
    )
    assert done.returncode == 0
    assert "replaced bad image" in done.stderr
    assert "saving" not in done.stderr
    assert "something" not in done.stderr


@pytest.mark.parametrize("error", ["BadImageError", "DamagedDatasetError", "MissingDatasetError"])
def test_faults_of_the_data_end_in_their_message(error):
    done = run(f'raise data.{error}("image 3 of split train is damaged")')
    assert done.returncode == 2
    assert done.stderr == "error: image 3 of split train is damaged\n"
