"""Checks of `experiments.doctor`: versions, what JAX computes on, and how."""

import os
import pathlib
import platform
import subprocess
from collections import Counter
from collections.abc import Iterator

import jax

import lrnet_jax
from experiments.report.diagnosis import Finding
from experiments.run import device_settings, installed, machine, pasteable
from pallas_kernels import api, pallas
from pallas_kernels.jax_triton import stack
from pallas_kernels.tools import shapes

# Variables that change what JAX does. Empty ones count as well.
VARIABLES = ("JAX_", "XLA_", "CUDA_", "NVIDIA_TF32_OVERRIDE", "NNX_", "TFDS_DATA_DIR")
NETWORK = "lrnet50"


def check_versions() -> Iterator[Finding]:
    """Versions of Python, this repository and what it needs."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=pasteable.ROOT, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    own = f"lrnet_jax {lrnet_jax.__version__}" + (f" ({commit})" if commit else "")
    yield Finding("versions", "ok", f"{own}, Python {platform.python_version()} on {_system()}")
    versions = installed.versions()
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield Finding("packages", "ok", found)
    missing = [name for name in (*installed.LIBRARY, *installed.TRAINING) if not versions[name]]
    if missing:
        text = f"{', '.join(missing)} is not installed"
        yield Finding("packages", "broken", text, pasteable.install("train"))
    if (untested := stack.untested()) is not None:
        yield Finding("packages", "attention", untested, _reinstall())
    plugins = [name for name in installed.PLUGINS if name.endswith("plugin") and versions[name]]
    for name in plugins:
        if versions[name] != versions["jaxlib"]:
            text = f"{name} {versions[name]} is for another jaxlib than {versions['jaxlib']}"
            yield Finding("packages", "broken", text, _reinstall())
    if len(plugins) > 1:
        text = f"{' and '.join(plugins)} are both installed, and JAX loads both"
        yield Finding("packages", "broken", text, _reinstall())


def check_devices() -> Iterator[Finding]:
    """What JAX computes on, and whether a GPU is idle beside it."""
    try:
        devices = jax.devices()
    except RuntimeError as error:
        line = str(error).splitlines()[0]
        yield Finding("devices", "broken", f"JAX finds no device: {line}", _reinstall())
        return
    kinds = Counter((device.platform, device.device_kind) for device in devices)
    names = ", ".join(f"{count} x {kind} ({name})" for (name, kind), count in kinds.items())
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    limit = f", {memory / 2**30:.1f} GiB each for JAX" if memory else ""
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    idle = machine.idle_gpus()
    if idle is None:
        yield Finding("devices", "ok", names + limit + processes)
    else:
        text, _, mend = idle.rpartition("; ")
        yield Finding("devices", "attention", f"{names}; {text}", mend.removeprefix("to use it: "))
    gpus = machine.nvidia_gpus()
    if gpus:
        text = f"{machine.describe(gpus)}, {gpus[0].memory}, driver {gpus[0].driver}"
        yield Finding(
            "NVIDIA driver", "ok", f"{text}, JAX for {machine.suitable_accelerator(gpus)}"
        )


def check_operator() -> Iterator[Finding]:
    """Which implementation LR-Net-50 gets here, and why not the others."""
    layers = shapes.select(f"{NETWORK}/*")
    supports = []
    for layer in layers:
        inputs = layer.abstract_inputs("float32")
        supports.append(api.implementations(*inputs, **layer.options))
    platform_name = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
    wanted = api.preferred(platform_name)
    chosen = Counter(
        next((name for name in wanted if support[name].runs), api.DEFAULT) for support in supports
    )
    runs = " and ".join(f"{name} for {count}" for name, count in chosen.items())
    text = f"{runs} of the {len(layers)} shapes of {NETWORK} on {platform_name}"
    # Fused kernels are alike but on GPUs where the first ones issue fewer instructions.
    good = wanted[:1] if wanted == api.PREFERRED_WITH_PAIRS else wanted
    if wanted and not chosen.keys() & set(good):
        mends = dict.fromkeys(supports[0][name].reason for name in good)
        yield Finding("operator", "attention", text, "; ".join(mends))
    else:
        yield Finding("operator", "ok", text)
    for name in api.IMPLEMENTATIONS:
        refusals = {support[name].reason for support in supports if not support[name].runs}
        if name not in chosen and refusals:
            yield Finding("operator", "ok", f"not {name}: {'; '.join(sorted(refusals))}")
        elif name in wanted and name not in chosen:
            yield Finding("operator", "ok", f"{name} would run too: the default is {wanted[0]}")
    if platform_name == "cuda":
        obstacle = pallas.unavailable() or pallas.backend_gone()
        how = "Pallas kernels" if obstacle is None else f"plain JAX, since {obstacle}"
        yield Finding("operator", "ok", f"values, keys and queries of the stem: {how}")


def check_programs() -> Iterator[Finding]:
    """Where compiled programs are kept, memory of a GPU, and precision of products."""
    kept = device_settings.option("jax_compilation_cache_dir")
    folder = pathlib.Path(kept) if kept else device_settings.default_cache()
    files = [path for path in folder.glob("*") if path.is_file()] if folder.exists() else []
    size = sum(path.stat().st_size for path in files) / device_settings.GIB
    text = f"{len(files)} files, {size:.2f} GiB of at most {device_settings.MAX_CACHE >> 30} GiB"
    if not device_settings.option("jax_enable_compilation_cache"):
        mend = "unset JAX_ENABLE_COMPILATION_CACHE"
        yield Finding("programs", "attention", "compiled programs are not kept", mend)
    else:
        yield Finding("programs", "ok", f"compiled programs are kept in {folder}: {text}")
    if jax.default_backend() == "cpu":
        yield Finding("precision", "ok", "a CPU multiplies float32 in float32")
        return
    text = "training multiplies float32 in float32; train.precision=tf32 is faster and less precise"
    if os.environ.get("NVIDIA_TF32_OVERRIDE") == "1":
        mend = "unset NVIDIA_TF32_OVERRIDE"
        yield Finding("precision", "attention", "NVIDIA_TF32_OVERRIDE=1 makes all of it tf32", mend)
    else:
        yield Finding("precision", "ok", text)


def check_preallocation(preallocate: str | None, fraction: str | None) -> Iterator[Finding]:
    """How much of a GPU a training takes at its start.

    Args:
      preallocate: XLA_PYTHON_CLIENT_PREALLOCATE as the user has set it.
      fraction: the same of XLA_PYTHON_CLIENT_MEM_FRACTION.
    """
    if preallocate is not None and preallocate.lower() in ("false", "0"):
        text = "a training takes memory as it needs it (XLA_PYTHON_CLIENT_PREALLOCATE)"
    else:
        share = f"{100 * float(fraction or 0.75):.0f} %"
        text = f"a training takes {share} of each GPU at its start; evaluate and predict do not"
    yield Finding("GPU memory", "ok", text)


def check_variables() -> Iterator[Finding]:
    """Variables of the environment that change what JAX does."""
    found = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith(VARIABLES)
    ]
    yield Finding("environment", "ok", ", ".join(found) or "no variable changes what JAX does")


def _system() -> str:
    return f"{platform.system()} {platform.machine()}"


def _reinstall() -> str:
    accelerator = machine.suitable_accelerator(machine.nvidia_gpus())
    return f"make clean env ACCELERATOR={accelerator}"
