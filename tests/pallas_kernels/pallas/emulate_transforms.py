"""Runs vmap, pmap and shard_map over the compiled GPU kernels on a CPU.

    PYTHONPATH=FOLDER_OF_PTXSIM python -m tests.pallas_kernels.pallas.emulate_transforms
        [--implementation=jax_triton] [--arch=9.0] [--route=plugin]

Compares the output and all gradients with the reference, as `tests.pallas_kernels.pallas.emulate`
does, for two images or stacks of them on two devices. Exit code 1 means a difference.
"""

import argparse
import dataclasses
import functools
import sys
from typing import Any

from pallas_kernels.tools import cross_compilation

cross_compilation.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)

from pallas_kernels.jax_triton import launch, stack  # noqa: E402
from pallas_kernels.pallas import backward_pass, forward_kernel  # noqa: E402
from pallas_kernels.pallas.tiling import Tile  # noqa: E402
from pallas_kernels.platform_switch import by_platform, vary_alike  # noqa: E402
from pallas_kernels.spec import Inputs, Residuals  # noqa: E402
from pallas_kernels.tools.comparison import reference_results  # noqa: E402
from pallas_kernels.tools.shapes import SHAPES, make_cotangent, make_inputs  # noqa: E402
from tests.pallas_kernels.pallas.emulate import skipped  # noqa: E402

SHAPE = dataclasses.replace(SHAPES["odd/fewer_channels_than_group"], batch=2)
TILE = Tile(2, 1)
TOLERANCE = 1e-5  # sums of at most 60 products of normal numbers in float32


def kernels(forward: Any, backward: Any, *arrays: jax.Array) -> tuple[Any, ...]:
    """All five results for query, key, value, prior and the gradient of the output."""
    inputs, d_out = Inputs(*arrays[:-1]), arrays[-1]
    out, normalizer = forward(SHAPE.spec, inputs, tile=TILE)
    tiles = (dataclasses.replace(TILE, strips_per_lane=2), TILE)
    residuals = Residuals(inputs, out, normalizer)
    return out, *backward(SHAPE.spec, residuals, d_out, tiles=tiles)


def on_two_devices(kernels: Any, *arrays: jax.Array) -> tuple[Any, ...]:
    """As `kernels` on half of the batch each, as the public operator wraps them."""
    *gradients, d_prior = by_platform(kernels)(*vary_alike(arrays))
    return *gradients, jax.lax.psum(d_prior, "batch")


def wrong(name: str, got: Any, want: Any) -> bool:
    """Prints the largest error of each result; whether one is too large."""
    found = [float(jnp.abs(a - b).max()) for a, b in zip(got, want, strict=True)]
    bad = not all(error <= TOLERANCE for error in found)
    print(f"{name:32} {' '.join(f'{x:.1e}' for x in found)} {'WRONG' if bad else 'ok'}", flush=True)
    return bad


def main() -> int:
    """Runs the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--implementation", default="pallas", choices=("pallas", "jax_triton"))
    parser.add_argument("--arch", default="9.0")
    parser.add_argument("--route", default=None, help="ptxsim's: xla (default), plugin, triton")
    options = parser.parse_args()
    reason = skipped(options.implementation)
    if options.implementation == "pallas" and jax.__version_info__ >= (0, 11):
        reason = "from JAX 0.11 on, the emulator describes one GPU to Pallas, and this needs two"
    if reason:
        print(f"SKIPPED: {reason}")
        return 0
    from ptxsim import jaxrun, jaxtriton

    if options.implementation == "pallas":
        passes = (forward_kernel.forward, backward_pass.backward)
        emulated = jaxrun.emulate(arch=options.arch, route=options.route)
    else:
        stack.load()
        passes = (launch.forward, launch.backward)
        emulated = jaxtriton.emulate(arch=options.arch)
    run = functools.partial(kernels, *passes)
    arrays = [*make_inputs(SHAPE), make_cotangent(SHAPE)]
    assert arrays[3] is not None
    stacked = [jnp.stack([x, x / 2]) for x in arrays]
    reference = functools.partial(reference_results, SHAPE)
    failures = 0
    with emulated:
        for axes in ((0, 0, 0, None, 0), (0, 0, 0, 0, 0)):
            chosen = [s if a == 0 else x for a, s, x in zip(axes, stacked, arrays, strict=True)]
            want = jax.vmap(lambda *x: reference(Inputs(*x[:4]), x[4]), in_axes=axes)(*chosen)
            got = jax.jit(jax.vmap(run, in_axes=axes))(*chosen)
            failures += wrong(f"vmap, prior {'alike' if axes[3] is None else 'too'}", got, want)
            got = jax.pmap(run, in_axes=axes)(*chosen)
            failures += wrong(f"pmap, prior {'alike' if axes[3] is None else 'too'}", got, want)
        rows, whole = jax.P("batch"), jax.P()
        sharded = jax.shard_map(
            functools.partial(on_two_devices, run),
            mesh=jax.sharding.Mesh(jax.devices()[:2], "batch"),
            in_specs=(rows, rows, rows, whole, rows),
            out_specs=(rows, rows, rows, rows, whole),
        )
        got = jax.jit(sharded)(*arrays)
        failures += wrong("shard_map", got, reference(Inputs(*arrays[:4]), arrays[4]))
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
