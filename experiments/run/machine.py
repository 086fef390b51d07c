"""The accelerator of this machine, found without JAX: what `make env` installs JAX for.

    python -m experiments.run.machine        # cpu, cuda12 or cuda13

It runs before anything is installed, so it imports the standard library only.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple

Accelerator = Literal["cpu", "cuda12", "cuda13"]

# What the wheels of JAX need: the oldest driver, and the oldest compute capability.
# Source: https://docs.jax.dev/en/latest/installation.html
REQUIREMENTS: dict[Accelerator, tuple[int, float]] = {"cuda13": (580, 7.5), "cuda12": (525, 5.2)}


class Gpu(NamedTuple):
    """An NVIDIA GPU as its driver describes it."""

    name: str
    driver: str
    capability: float
    memory: str


def nvidia_gpus() -> list[Gpu]:
    """The GPUs that `nvidia-smi` lists; none where it is missing or finds no driver."""
    query = "--query-gpu=name,driver_version,compute_cap,memory.total"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return []
    rows = [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines()]
    return [
        Gpu(name, driver, float(capability), memory) for name, driver, capability, memory in rows
    ]


def suitable_accelerator(gpus: Sequence[Gpu]) -> Accelerator:
    """The newest CUDA whose JAX runs on all of the GPUs; cpu if there is none."""
    for accelerator, (driver, capability) in REQUIREMENTS.items():
        if gpus and all(
            int(gpu.driver.partition(".")[0]) >= driver and gpu.capability >= capability
            for gpu in gpus
        ):
            return accelerator
    return "cpu"


def describe(gpus: Sequence[Gpu]) -> str:
    """For example "8 x NVIDIA H100 80GB HBM3"."""
    counts = {gpu.name: sum(other.name == gpu.name for other in gpus) for gpu in gpus}
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items())


def too_old(gpus: Sequence[Gpu]) -> str:
    """Why no JAX runs on these GPUs."""
    driver, capability = REQUIREMENTS["cuda12"]
    return (
        f"{describe(gpus)} (driver {gpus[0].driver}, compute capability {gpus[0].capability}) is "
        f"too old for JAX, which needs driver {driver} and compute capability {capability}"
    )


def idle_gpus() -> str | None:
    """Why JAX computes on the CPU beside an NVIDIA GPU, with the mend; None if no GPU is idle.

    JAX says nothing when it is installed without CUDA.
    """
    import jax

    if jax.default_backend() != "cpu" or not (gpus := nvidia_gpus()):
        return None
    idle = f"this computes on the CPU, and {describe(gpus)} is idle"
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked:
        return f"{idle}, because JAX_PLATFORMS={asked}; to use it: unset JAX_PLATFORMS"
    if (accelerator := suitable_accelerator(gpus)) == "cpu":
        return f"{idle}; {too_old(gpus)}"
    if (hidden := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return f"{idle}; CUDA_VISIBLE_DEVICES={hidden!r}; to see all: unset CUDA_VISIBLE_DEVICES"
    return f"{idle}; to use it: make env ACCELERATOR={accelerator}"


def main() -> None:
    """Prints the accelerator to install for."""
    gpus = nvidia_gpus()
    accelerator = suitable_accelerator(gpus)
    if gpus and accelerator == "cpu":
        print(f"{too_old(gpus)}; JAX is installed for the CPU", file=sys.stderr)
    print(accelerator)


if __name__ == "__main__":
    main()
