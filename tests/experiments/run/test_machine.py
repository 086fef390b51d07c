"""What JAX is installed for, and what a run on a CPU beside a GPU says; GPUs are simulated."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from experiments.run import machine

ROOT = pathlib.Path(__file__).parent.parent.parent.parent
H100 = "NVIDIA H100 80GB HBM3, 580.65.06, 9.0, 81559 MiB"
A100_OLD_DRIVER = "NVIDIA A100-SXM4-40GB, 535.104.05, 8.0, 40960 MiB"
V100_NEW_DRIVER = "Tesla V100-SXM2-16GB, 580.65.06, 7.0, 16384 MiB"
KEPLER = "Tesla K80, 470.82.01, 3.7, 11441 MiB"


@pytest.fixture
def install_gpus(tmp_path, monkeypatch):
    """Puts an `nvidia-smi` first into the path that reports the given lines."""

    def install(*lines, exit_code=0):
        program = tmp_path / "nvidia-smi"
        text = "".join(f"echo '{line}'\n" for line in lines)
        program.write_text(f"#!/bin/sh\n{text}exit {exit_code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([H100] * 8, "cuda13"),
        ([A100_OLD_DRIVER], "cuda12"),
        ([V100_NEW_DRIVER], "cuda12"),
        ([H100, V100_NEW_DRIVER], "cuda12"),
        ([KEPLER], "cpu"),
        ([], "cpu"),
    ],
)
def test_accelerator(install_gpus, lines, expected):
    install_gpus(*lines)
    assert machine.suitable_accelerator(machine.nvidia_gpus()) == expected


def test_no_driver(install_gpus, monkeypatch):
    install_gpus("NVIDIA-SMI has failed because it could not communicate", exit_code=9)
    assert machine.nvidia_gpus() == []
    monkeypatch.setenv("PATH", "")
    assert machine.nvidia_gpus() == []


def test_it_runs_before_anything_is_installed(install_gpus):
    """As make calls it: without the packages of an environment."""
    install_gpus(KEPLER)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "experiments.run.machine"],
        capture_output=True, text=True, cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.stdout == "cpu\n"
    assert "Tesla K80 (driver 470.82.01, compute capability 3.7) is too old for JAX" in done.stderr


@pytest.mark.parametrize(
    ("lines", "environment", "expected"),
    [
        ([H100] * 8, {}, "8 x NVIDIA H100 80GB HBM3 is idle; to use it: make env ACC.*=cuda13"),
        ([A100_OLD_DRIVER], {}, "make env ACCELERATOR=cuda12"),
        ([H100], {"JAX_PLATFORMS": "cpu"}, "because JAX_PLATFORMS=cpu; .* unset JAX_PLATFORMS"),
        ([H100], {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES=''; .* unset CUDA_VISIBLE"),
        ([KEPLER], {}, "Tesla K80 is idle; Tesla K80 .driver 470.82.01, .* is too old for JAX"),
    ],
)  # fmt: skip
def test_a_gpu_that_is_idle(install_gpus, monkeypatch, lines, environment, expected):
    install_gpus(*lines)
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    message = machine.idle_gpus()
    assert message is not None
    assert re.search(expected, message)


def test_no_gpu_is_idle(install_gpus):
    install_gpus()
    assert machine.idle_gpus() is None
