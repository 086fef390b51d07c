"""A training step lowered for a GPU by jax_triton, in a first process and in a second one.

    JAX_PLATFORMS=cpu PYTHONPATH=build/cuda python -m tests.lrnet_jax.second_start
        [--network=lrnet50] [--kernel_size=7] [--image_size=224] [--batch_size=128]
        [--capability=90] [--remat=none] [--implementation=pallas]

Triton compiles while a program is lowered. The first process starts on an empty folder of kept
kernels, the second one on what the first has left. JAX has no Pallas-Triton in both: its module is
hidden, so that jax_triton is chosen for every local relation. With `--implementation=pallas` it is
there. Every start then lowers the kernels, for XLA to compile or to find in JAX's cache. Seconds
are of tracing and lowering, without imports and the first parameters.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
BACKEND = "jax.experimental.pallas.triton"


def start(folder: str, **options: Any) -> dict[str, Any]:
    """What a new process reports that keeps kernels in a folder; see `lower`."""
    command = [sys.executable, "-m", "tests.lrnet_jax.second_start", f"--folder={folder}"]
    command += [f"--{name}={value}" for name, value in options.items()]
    # Triton's own cache would be found by both.
    environment = {**os.environ, "TRITON_CACHE_DIR": f"{folder}/of_triton"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def lower(options: argparse.Namespace) -> dict[str, Any]:
    """Lowers the step here.

    Returns:
      seconds
      kernels: numbers of the calls of a kernel that were traced, by its name
      compiled: how many of them were compiled
      calls: how often the module calls a kernel, by the pass that calls it
      targets: numbers of the module's custom calls, by their targets
      results: number of arrays that the module returns
      state: number of arrays of the state of training
      module: a hash of its text
      backend: why Pallas is not there
    """
    if options.implementation == "jax_triton":
        sys.modules[BACKEND] = None  # type: ignore[assignment]
    from pallas_kernels.tools import cross_compilation

    cross_compilation.prepare()
    import jax
    import jax.numpy as jnp

    import lrnet_jax
    from experiments.bench.network_programs import make_training_step
    from lrnet_jax.training.devices import AXIS, parallel
    from pallas_kernels import pallas
    from pallas_kernels.jax_triton import kept, stack
    from pallas_kernels.platform_switch import compiling_for
    from pallas_kernels.tools.cross_compilation import GPUS, absent_mesh
    from tests.pallas_kernels.lowered import kernel_calls

    variant = dataclasses.replace(
        lrnet_jax.get_variant(options.network),
        kernel_size=options.kernel_size,
        stem_kernel_size=options.kernel_size,
        dtype="bfloat16",
        remat=options.remat,
    )
    _, step, state = make_training_step(variant)
    side, numbers = options.image_size, jax.ShapeDtypeStruct((1, options.batch_size), jnp.int32)
    images = jax.ShapeDtypeStruct((1, options.batch_size, side, side, 3), jnp.uint8)
    batch = {"image": images, "label": numbers, "index": numbers}
    capability = options.capability / 10
    [gpu, *_] = [gpu for gpu in GPUS.values() if gpu.compute_capability == capability]
    mesh = absent_mesh(gpu, AXIS)
    on_device: Any = parallel(step, devices=mesh.devices.flatten(), way="shard_map")
    compiled, run = [], stack.Call.run
    stack.Call.run = lambda self, *x: compiled.append(self) or run(self, *x)  # type: ignore
    began = time.perf_counter()
    with (
        kept.keeping(pathlib.Path(options.folder) / "kept"),
        compiling_for(capability),
        pallas.absent_gpu(mesh.abstract_mesh),
        stack.recorded() as calls,
    ):
        traced = on_device.trace(jax.eval_shape(lambda: state), batch)
        lowered = traced.lower(lowering_platforms=("cuda",))
    seconds, text = time.perf_counter() - began, lowered.as_text()
    [results] = re.findall(r"func.func public @main\(.*\) -> \((.*)\) \{", text)
    return {
        "seconds": seconds,
        "kernels": collections.Counter(call.name for call, _ in calls),
        "compiled": len(compiled),
        "calls": kernel_calls(text),
        "targets": collections.Counter(re.findall(r"custom_call @([\w$.]+)", text)),
        "results": results.count("tensor<"),
        "state": len(jax.tree.leaves(state)),
        "module": hashlib.sha256(text.encode()).hexdigest(),
        "backend": pallas.backend_gone(),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="lrnet50")
    parser.add_argument("--kernel_size", type=int, default=7)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--remat", default="none")
    parser.add_argument("--implementation", default="jax_triton", choices=("jax_triton", "pallas"))
    parser.add_argument("--folder", help="of kept kernels, of a process that starts by itself")
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(lower(options)))
        return
    given = {name: value for name, value in vars(options).items() if name != "folder"}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            found = start(folder, **given)
            total = sum(found["kernels"].values())
            text = f"{name} start: {found['seconds']:.1f} s"
            if options.implementation == "jax_triton":
                text += f", {found['compiled']} of {total} kernels compiled"
                text += f", {total - found['compiled']} found in the folder"
            print(text, flush=True)
        files = list(pathlib.Path(folder).glob("kept/*"))
        print(f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
