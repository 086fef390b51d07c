"""Training steps of whole networks on a GPU: speed, memory, start-up, and the CPU's numbers."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any, Literal, cast

import jax
import numpy as np

from experiments.bench.kept_results import Result
from experiments.bench.network_programs import CLASSES, make_training_step
from experiments.run.results import describe_result, read_result
from lrnet_jax.model_zoo import get_variant
from lrnet_jax.training.devices import parallel, replicate, shard
from lrnet_jax.variant import Remat, Variant

# Each with what the backward pass computes again: as the recipes train it, and as the zoo has it.
NETWORKS = (
    "resnet26:none", "lrnet26:blocks", "resnet50:none", "lrnet50:blocks", "lrnet50:none",
)  # fmt: skip
STEPS = 20
COMPARED = 3


def time_network(name: str, batch_size: int) -> Result:
    """Times a network in two processes: the second loads the programs that the first has kept.

    Args:
      name: of the network in the zoo and the policy, such as "lrnet50:blocks".
      batch_size: images.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {"JAX_COMPILATION_CACHE_DIR": cache}
        command = [sys.executable, "-m", "experiments.bench.gpu_steps", name, str(batch_size)]
        cold, warm = (json_of(command, environment) for _ in range(2))
    return {
        **warm,
        "first_step_cold": cold["first_step"],
        "first_step_warm": warm["first_step"],
        "summary": f"{warm['images_per_second']:.0f} images/s, {warm['peak_bytes'] / 2**30:.2f} "
        f"GiB, first step {cold['first_step']:.0f} s, {warm['first_step']:.0f} s again",
    }


def variant_of(name: str, dtype: Literal["bfloat16", "float32"]) -> Variant:
    """The variant of a network and its policy, such as "lrnet50:blocks"."""
    network, _, remat = name.partition(":")
    return dataclasses.replace(get_variant(network), dtype=dtype, remat=cast(Remat, remat))


def json_of(command: list[str], environment: dict[str, str]) -> Any:
    """The JSON that a command prints in its last line.

    Args:
      command: to run.
      environment: variables besides those of this process.

    Raises:
      RuntimeError: the command failed; the message has the last line of its errors.
    """
    whole = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=whole)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{' '.join(command[1:])} failed: {''.join(last)}")
    return json.loads(done.stdout.splitlines()[-1])


def time_here(name: str, batch_size: int) -> Result:
    """Times training steps of a network in this process, on the first device.

    Returns:
      first_step in seconds from before the network is made; images_per_second over `STEPS` steps,
      of which all but the last are not waited for; peak_bytes of the device, 0 if it does not say.
    """
    start = time.perf_counter()
    on_gpu = jax.default_backend() == "gpu"
    dtype: Literal["bfloat16", "float32"] = "bfloat16" if on_gpu else "float32"
    size = 224 if on_gpu else 28
    training = make_training_step(variant_of(name, dtype))
    device = jax.local_devices()[:1]
    batch = shard(_batch(batch_size, size, 0), device)
    step = parallel(training.step, donate=True, devices=device)
    state, metrics = step(replicate(training.state, device), batch)
    jax.block_until_ready(metrics)
    first_step = time.perf_counter() - start
    steps = STEPS if on_gpu else 2
    start = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    seconds = time.perf_counter() - start
    memory = device[0].memory_stats() or {}
    return {
        "first_step": first_step,
        "images_per_second": steps * batch_size / seconds,
        "peak_bytes": memory.get("peak_bytes_in_use", 0),
        "batch": batch_size,
        "image_size": size,
        "dtype": dtype,
    }


def _batch(count: int, size: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, count).astype(np.int32),
        "index": np.arange(count, dtype=np.int32),
    }


def compare_with_cpu() -> Result:
    """Steps of the quickstart's network on the first device and on the CPU, from equal states.

    A network amplifies rounding from step to step, so each step begins from the state of the CPU.

    Returns:
      The largest change that differs, relative to the largest change of the same array, for each
      step; the losses of both.
    """
    training = make_training_step(get_variant("lrnet_small"))
    devices = {"cpu": jax.devices("cpu")[:1], "device": jax.devices()[:1]}
    programs = {name: parallel(training.step, devices=found) for name, found in devices.items()}
    state = training.state
    found: list[float] = []
    losses: list[list[float]] = []
    for n in range(COMPARED):
        batch = _batch(64, 28, n)
        after, loss = {}, []
        for name, program in programs.items():
            result, metrics = program(replicate(state, devices[name]), shard(batch, devices[name]))
            after[name] = jax.device_get(result)
            loss.append(float(jax.device_get(metrics)["loss"]))
        found.append(_difference(state, after["cpu"], after["device"]))
        losses.append(loss)
        state = after["cpu"]
    return {
        "differences": found,
        "losses": losses,
        "beyond": ["steps"] if max(found) > 1e-3 else [],
        "summary": f"steps differ by at most {max(found):.1e} of a change",
    }


def _difference(before: Any, a: Any, b: Any) -> float:
    """The largest difference of a and b in units of the largest change of each parameter array."""
    worst = 0.0
    leaves = (jax.tree.leaves(tree.params) for tree in (before, a, b))
    for old, first, second in zip(*leaves, strict=True):
        change = float(np.max(np.abs(first - np.asarray(old))))
        if change > 0:
            worst = max(worst, float(np.max(np.abs(first - second))) / change)
    return worst


def train_quickstart() -> Result:
    """Trains the quickstart on this machine, and compares its accuracy with that in README."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder, "run")
        command = [
            sys.executable, "-m", "experiments.train", "--config=quickstart",
            f"--workdir={workdir}",
        ]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode and "No module named" in done.stderr:
            reason = done.stderr.strip().splitlines()[-1]
            return {"summary": f"not run: {reason}", "skipped": True}
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        result = read_result(workdir)
    assert result is not None  # the run has ended with 0
    return {
        "top1": result.top1,
        "seconds": seconds,
        "summary": f"{describe_result(result)} in {seconds:.0f} s",
    }


if __name__ == "__main__":
    print(json.dumps(time_here(sys.argv[1], int(sys.argv[2]))))
