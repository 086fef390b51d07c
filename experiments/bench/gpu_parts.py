"""The parts of the report of a GPU, as units that are measured one after the other."""

import dataclasses
import functools
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels.pallas
from experiments.bench import gpu_bounds, gpu_model, gpu_steps
from experiments.bench.kept_results import Result, Unit
from experiments.bench.kernel_comparison import run_kernels
from experiments.run import installed
from experiments.run.machine import nvidia_gpus
from pallas_kernels import implementations, local_relation
from pallas_kernels.tools import benchmark, comparison
from pallas_kernels.tools import tune as tuning
from pallas_kernels.tools.shapes import NETWORKS, ODD, SHAPES, Shape

KERNELS = ("pallas", "jax_triton")  # the implementations in question
DTYPES = ("float32", "bfloat16", "float16")
TIMED = ("stem", "lrnet50/*", "lrnet26/res2")
CONVOLUTIONS = ("dense_3x3", "depthwise_7x7")
INTERPRETED = ("odd/fewer_channels_than_group", "odd/kernel_1x1")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured on this machine.

    Attributes:
      name: of the GPU, as a name of files.
      reason: why there is no GPU; None with one.
      batch_size: images of a layer or a step.
    """

    name: str
    reason: str | None
    batch_size: int

    @classmethod
    def of_this_machine(cls, batch_size: int) -> "Setting":
        """The setting of the first device."""
        reason = pallas_kernels.pallas.unavailable()
        kind = jax.devices()[0].device_kind
        if jax.default_backend() == "gpu":
            reason = None  # one implementation may lack, and the report says so
        else:
            kind, batch_size = "no-gpu", 2
        return cls(re.sub(r"[^\w]+", "-", kind).strip("-").lower(), reason, batch_size)

    @property
    def interpret(self) -> bool:
        """Whether kernels run in interpret mode."""
        return self.reason is not None

    def kernels(self, shape: Shape, dtype: str) -> list[str]:
        """The kernels that run a problem here."""
        if self.interpret:
            return ["pallas_interpret"]
        support = implementations(*shape.abstract_inputs(dtype), **shape.options)
        return [name for name in KERNELS if name in support and support[name].runs]


def environment(setting: Setting) -> list[Unit]:
    """Versions, the GPU, and what runs on it."""
    return [Unit("machine", functools.partial(_describe_machine, setting))]


def _describe_machine(setting: Setting) -> Result:
    shape = SHAPES["lrnet50/res2"].as_run("bfloat16").with_batch(setting.batch_size)
    support = implementations(*shape.abstract_inputs("bfloat16"), **shape.options)
    return {
        "device": jax.devices()[0].device_kind,
        "no GPU": setting.reason,
        "GPUs": [gpu._asdict() for gpu in nvidia_gpus()],
        "capability": str(getattr(jax.devices()[0], "compute_capability", "-")),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: v or "not installed" for name, v in installed.versions().items()},
        "implementations": {name: found._asdict() for name, found in support.items()},
    }


def correctness(setting: Setting) -> list[Unit]:
    """Each kernel on each shape and dtype, against the reference in float32."""
    if setting.interpret:
        shapes = [comparison.cut(SHAPES[name]) for name in INTERPRETED]
        dtypes: tuple[str, ...] = ("float32",)
    else:  # the reference unfolds windows, so shapes of networks get a few images
        shapes = [*ODD, *(shape.with_batch(4) for shape in NETWORKS)]
        dtypes = DTYPES
    return [
        Unit(f"{shape.name} {dtype} {kernel}", functools.partial(compare, shape, dtype, kernel))
        for shape in shapes
        for dtype in dtypes
        for kernel in setting.kernels(shape, dtype)
    ]


def compare(shape: Shape, dtype: str, kernel: str) -> Result:
    """Compares a kernel with the reference, and with itself in a second call.

    Returns:
      errors, {result: [error, budget]}; beyond, the results beyond their budget; repeated, whether
      all bits were.
    """
    results: list[Any] = []
    if kernel == "pallas_interpret":  # with small tiles, which compile faster
        run = jax.jit(functools.partial(run_kernels, shape, True))
    else:
        run = jax.jit(functools.partial(_run_and_differentiate, shape, kernel))

    def twice(*arrays: Any) -> Any:
        results.extend(run(*arrays) for _ in range(2))
        return results[0]

    found = comparison.errors(shape, jnp.dtype(dtype), twice)
    first, second = (jax.tree.map(np.asarray, result) for result in results)
    repeated = all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))
    worst = max(found, key=lambda error: error.error / error.budget if error.budget else 0.0)
    beyond = [error.result for error in found if not error.ok]
    return {
        "errors": {error.result: [error.error, error.budget] for error in found},
        "beyond": beyond,
        "repeated": repeated,
        "summary": f"{worst.result} {worst.error:.1e} of {worst.budget:.1e}"
        + (f", BEYOND: {', '.join(beyond)}" if beyond else "")
        + ("" if repeated else ", NOT REPEATED"),
    }


def _run_and_differentiate(shape: Shape, kernel: str, *arrays: Any) -> tuple[Any, ...]:
    """The output and four gradients, None for that of a prior of None."""
    *inputs, d_out = arrays
    run = functools.partial(local_relation, **shape.options, implementation=kernel)
    out, vjp = jax.vjp(run, *inputs)
    return out, *vjp(d_out)


def sanitizer(setting: Setting) -> list[Unit]:
    """compute-sanitizer over the kernels of odd shapes."""
    if setting.interpret:
        return []
    return [Unit(tool, functools.partial(_sanitize, tool)) for tool in ("memcheck", "racecheck")]


def _sanitize(tool: str) -> Result:
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"summary": "not run: compute-sanitizer is not installed", "skipped": True}
    command = [
        program, f"--tool={tool}", "--error-exitcode=99", sys.executable,
        "-m", "experiments.bench.gpu_sanitized",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {' | '.join(lines[-4:])}")
    return {"summary": lines[-1] if lines else "no output"}


def tune(setting: Setting) -> list[Unit]:
    """Measures the tiles of each implementation's kernels, and keeps the fastest."""
    if setting.interpret:
        return []
    return [
        Unit(f"{shape.name} {kernel}", functools.partial(_tune, shape, kernel))
        for shape in _timed(setting)
        for kernel in setting.kernels(shape, "bfloat16")
    ]


def _timed(setting: Setting) -> list[Shape]:
    """The problems of `TIMED`, as the networks run them in bfloat16."""
    shapes = benchmark.select(",".join(TIMED))
    return [shape.as_run("bfloat16").with_batch(setting.batch_size) for shape in shapes]


def _tune(shape: Shape, kernel: str) -> Result:
    lines: list[str] = []
    tuning.tune([shape], jnp.bfloat16, rounds=5, report=lines.append, implementation=kernel)
    return {"tiles": lines, "summary": f"{len(lines)} kernels"}


def kernels(setting: Setting) -> list[Unit]:
    """Times of layers, and what the hardware allows."""
    hardware = Unit("hardware", functools.partial(gpu_bounds.measure, small=setting.interpret))
    if setting.interpret:
        shapes = [SHAPES[name] for name in INTERPRETED]
    else:
        shapes = _timed(setting)
    dtype = "float32" if setting.interpret else "bfloat16"
    return [
        hardware,
        *(Unit(s.name, functools.partial(_time, s, dtype, setting)) for s in shapes),
    ]


def _time(shape: Shape, dtype: str, setting: Setting) -> Result:
    names = [*setting.kernels(shape, dtype), "xla", *CONVOLUTIONS]
    if setting.interpret:
        names = ["xla", *CONVOLUTIONS]
    records = benchmark.measure(shape, names, dtype, rounds=3 if setting.interpret else 10)
    passes: dict[str, dict[str, Any]] = {}
    for record in records:
        passes.setdefault(record.direction, {})[record.name] = {
            **dataclasses.asdict(record.seconds), "temp_bytes": record.temp_bytes,
        }  # fmt: skip
    first = passes["forward_backward"][names[0]]["median"]
    return {
        "passes": passes,
        "work": gpu_bounds.work(shape, dtype),
        "dtype": dtype,
        "batch": shape.batch,
        "summary": f"{names[0]} {1e3 * first:.2f} ms forward and backward",
    }


def wrong_results(results: Mapping[str, Mapping[str, Result]]) -> list[str]:
    """A line for each result that is beyond its budget, is not repeated, or failed."""
    wrong = []
    for part, units in results.items():
        for key, result in units.items():
            if "error" in result:
                wrong.append(f"{part}, {key}: {result['error']}")
            if result.get("beyond"):
                wrong.append(f"{part}, {key}: beyond the budget: {', '.join(result['beyond'])}")
            if not result.get("repeated", True):
                wrong.append(f"{part}, {key}: a second call gave other bits")
    return wrong


def steps(setting: Setting) -> list[Unit]:
    """Training steps of whole networks, in processes of their own."""
    return [
        Unit(name, functools.partial(gpu_steps.time_network, name, setting.batch_size))
        for name in _networks(setting)
    ]


def model(setting: Setting) -> list[Unit]:
    """What the model says of the same steps."""
    kind = jax.devices()[0].device_kind
    return [
        Unit(name, functools.partial(gpu_model.model_network, name, setting.batch_size, kind))
        for name in _networks(setting)
    ]


def _networks(setting: Setting) -> tuple[str, ...]:
    trial = ("resnet_small:none", "lrnet_small:blocks")
    return trial if setting.interpret else gpu_steps.NETWORKS


def quickstart(setting: Setting) -> list[Unit]:
    """Steps of the quickstart on the GPU and on the CPU, and its training."""
    units = [Unit("steps", gpu_steps.compare_with_cpu)]
    if not setting.interpret:
        units.append(Unit("training", gpu_steps.train_quickstart))
    return units


PARTS: dict[str, Callable[[Setting], list[Unit]]] = {
    "environment": environment,
    "correctness": correctness,
    "sanitizer": sanitizer,
    "tune": tune,
    "kernels": kernels,
    "steps": steps,
    "model": model,
    "quickstart": quickstart,
}
