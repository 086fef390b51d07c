"""Errors of the fused kernels against the reference, forward and all four gradients.

    python -m experiments.compare_kernels [--shapes='odd/*'] [--dtypes=float32,bfloat16]
        [--batch=8]

On an NVIDIA GPU the real kernels, with time and temporary memory beside the reference's and XLA's
(ratio to the reference; see `pallas_kernels.tools.benchmark`); elsewhere the same kernels in
interpret mode on small shapes, errors only. Each error stands beside its budget, and the table ends
with why the budget is what it is. Exit code 1 if an error is beyond its budget.
"""

import argparse
import fnmatch
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.pallas import backward_pass, forward_kernel, unavailable, unsupported
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Inputs, Residuals
from pallas_kernels.tools.benchmark import measure, table
from pallas_kernels.tools.comparison import REASON, cut, errors
from pallas_kernels.tools.shapes import SHAPES, Shape, make_inputs

# Interpret mode compiles for seconds per shape and dtype.
DEFAULT_INTERPRETED = "odd/partial_group,odd/rectangular,odd/stride3,odd/no_softmax_depth4"


def kernels(shape: Shape, interpret: bool, *arrays: Any) -> tuple[jax.Array | None, ...]:
    """All five results of the kernels."""
    inputs, d_out = Inputs(*arrays[:-1]), arrays[-1]
    tile: Tile | None = None
    tiles: tuple[Tile, Tile] | None = None
    if interpret:  # long strips only make interpret mode slow to compile
        key_strip = -(-2 // shape.spec.stride) * shape.spec.stride
        tile, tiles = Tile(2, 1), (Tile(2, 1, strips_per_lane=2), Tile(key_strip, 1))
    out, normalizer = forward_kernel.forward(shape.spec, inputs, interpret=interpret, tile=tile)
    gradients = backward_pass.backward(
        shape.spec,
        Residuals(inputs, out, normalizer),
        d_out,
        interpret=interpret,
        tiles=tiles,
    )
    return out, *gradients


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", help="comma-separated patterns of names")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--batch", type=int, default=8, help="on a GPU, of networks' shapes")
    options = parser.parse_args(arguments)

    why = unavailable()
    interpret = why is not None
    if interpret:
        print(f"INTERPRET MODE: {why}.\nNetworks' shapes are cut down; no times.\n")
    patterns = (options.shapes or (DEFAULT_INTERPRETED if interpret else "*")).split(",")
    chosen: dict[str, Shape] = {}
    for name, shape in SHAPES.items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            if interpret:
                shape = cut(shape)
            elif not name.startswith("odd/"):
                shape = shape.with_batch(options.batch)
            chosen[shape.name] = shape
    if not chosen:
        parser.error(f"--shapes={options.shapes} fits none of {', '.join(SHAPES)}")

    beyond = 0
    print(f"{'shape':34} {'dtype':8} {'result':8} {'error':>9} {'budget':>9}")
    for shape in chosen.values():
        for dtype in options.dtypes.split(","):
            inputs = make_inputs(shape, dtype)
            reason = unsupported(shape.spec, inputs)
            if reason:
                print(f"{shape.name:34} {dtype:8} not run by the kernels: {reason}")
                continue
            run: Callable[..., Any] = jax.jit(functools.partial(kernels, shape, interpret))
            for x in errors(shape, jnp.dtype(dtype), run):
                beyond += not x.ok
                print(
                    f"{shape.name:34} {dtype:8} {x.result:8} {x.error:9.2e} {x.budget:9.2e}"
                    f"{'' if x.ok else '  BEYOND'}",
                    flush=True,
                )
            if not interpret:
                print(table(measure(shape, ("reference", "xla", "pallas"), dtype, rounds=10)))
    print("\nBudgets, in units of the terms that make up a result:")
    for dtype in options.dtypes.split(","):
        if jnp.dtype(dtype).itemsize == 2:
            print(f"  {dtype}: as float32, {REASON[dtype]}")
        else:
            print(f"  {dtype}: {REASON[dtype]}")
    print(f"{beyond} results beyond their budget")
    return int(beyond > 0)


if __name__ == "__main__":
    sys.exit(main())
