"""Executes the compiled GPU kernels on a CPU and compares them with the reference.

    PYTHONPATH=FOLDER_OF_PTXSIM python -m tests.gpu.emulate [--shapes='odd/*'] [--arch=8.0,9.0]
        [--dtypes=float32,bfloat16] [--strip=2] [--route=plugin] [--plant-bug]

ptxsim compiles each kernel for the GPU and runs its PTX thread by thread. It sees what interpret
mode cannot: the inline assembly, addresses outside an array, races, bytes that nobody writes. It
does not measure time. Networks are cut to a few groups and a small image that keep alignment,
partial groups and stride; shapes that then look alike run once. Exit code 1 on any difference
or hazard; says so and exits 0 where ptxsim or the CUDA plugin is not installed.
"""

import argparse
import dataclasses
import fnmatch
import importlib.util
import math
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any
from unittest import mock

from pallas_kernels import gpu_compile

gpu_compile.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from pallas_kernels import gpu_backward, gpu_forward, gpu_lanes, reference  # noqa: E402
from pallas_kernels.shapes import SHAPES, Shape, make_cotangent, make_inputs  # noqa: E402
from pallas_kernels.tiling import Tile  # noqa: E402

RESULTS = ("out", "d_query", "d_key", "d_value", "d_prior")


def skipped() -> str | None:
    """Why nothing can be emulated here, or None."""
    if importlib.util.find_spec("ptxsim") is None:
        return "ptxsim is not on PYTHONPATH"
    from ptxsim import jaxrun

    if not jaxrun.routes():
        return f"neither the CUDA plugin of JAX nor triton is installed; {gpu_compile.INSTALL}"
    return None


def cut(shape: Shape) -> Shape:
    """A small problem with the alignment, the partial group and the options of a network's."""
    if shape.name.startswith("odd/"):
        return shape
    m, s = shape.spec.channels_per_group, shape.spec.stride
    align, rest = math.gcd(shape.channels, m), shape.channels % m
    channels = 2 * m + rest
    assert math.gcd(channels, m) == align
    height = min(shape.height, 9 * s + 1)
    width = min(shape.width, 14 * s)
    return dataclasses.replace(
        shape,
        name=f"{'cut'}/{height}x{width}x{channels}_stride{s}",
        height=height,
        width=width,
        channels=channels,
        batch=1,
    )


def differences(
    shape: Shape, dtype: Any, arch: str, tiles: Sequence[Tile | None], route: str | None
) -> tuple[dict[str, float], list[str], int]:
    """Errors beside their budget for each result, problems found, warps' instructions.

    An error is relative to the largest reference number; the reference runs in float32 on the
    rounded inputs. Budget: half a unit in the last place of the dtype (16-bit results are rounded
    once) plus 16 roundings of float32: sums of a few hundred terms, whose errors mostly cancel.
    """
    from ptxsim import jaxrun

    inputs = make_inputs(shape, dtype)
    d_out = make_cotangent(shape, dtype)
    forward, query, key = tiles

    def kernels(*inputs: Any) -> Any:
        out, normalizer = gpu_forward.forward(shape.spec, *inputs, tile=forward)
        pair = None if query is None or key is None else (query, key)
        return out, *gpu_backward.backward(shape.spec, *inputs, out, normalizer, d_out, tiles=pair)

    got, runs = jaxrun.simulate(kernels, *inputs, arch=arch, route=route)
    wide = [None if x is None else x.astype(jnp.float32) for x in inputs]
    out, vjp = jax.vjp(lambda *x: reference.forward(shape.spec, *x), *wide)
    want = (out, *vjp(d_out.astype(jnp.float32)))
    errors, problems = {}, []
    for name, a, b in zip(RESULTS, got, want, strict=True):
        if b is None:
            continue
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # delta is computed from the rounded output, so gradients see its rounding too.
        budget = 2.0**-19 + float(jnp.finfo(dtype).eps) * (0.5 if name in ("out", "d_value") else 2)
        error = float(np.abs(a - b).max() / np.abs(b).max())
        errors[name] = error / budget
        if not error <= budget:
            problems.append(f"{name}: error {error:.2e} beyond {budget:.2e}")
    for run in runs:
        if run.stats.hazards:
            problems.append(f"{run.name}: {run.stats.hazards}")
        unwritten = run.stats.unwritten
        if any(unwritten.values()) if isinstance(unwritten, dict) else unwritten:
            problems.append(f"{run.name}: bytes never written: {unwritten}")
    return errors, problems, len(runs)


def plant_bug() -> Any:
    """Shifts every window by one row, as an off-by-one in `window_row` would."""
    true_load = gpu_lanes.load_priors

    def wrong(problem: Any, fast: bool, refs: Any, row: Any, group: Any, valid: Any) -> Any:
        taps = problem.spec.kernel_size[0]
        return true_load(problem, fast, refs, (row + 1) % taps, group, valid)

    return mock.patch.multiple("pallas_kernels.gpu_forward", load_priors=wrong)


def chosen(patterns: str) -> Iterable[Shape]:
    """Shapes by name, cut down, each small problem once."""
    seen = set()
    for name, shape in SHAPES.items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split(",")):
            small = cut(shape)
            if small.name not in seen:
                seen.add(small.name)
                yield small


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="*", help="comma-separated patterns of shapes.py")
    parser.add_argument("--arch", default="8.0,9.0")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--strip", type=int, default=0, help="0: the tile that would be used")
    parser.add_argument("--warps", type=int, default=4)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--route", default=None, help="ptxsim's: xla (default), plugin, triton")
    parser.add_argument("--plant-bug", action="store_true", help="show that an error is caught")
    options = parser.parse_args(arguments)
    reason = skipped()
    if reason:
        print(f"SKIPPED: {reason}")
        return 0
    failures = 0
    for arch in options.arch.split(","):
        for dtype in options.dtypes.split(","):
            for shape in chosen(options.shapes):
                tiles: list[Tile | None] = [None] * 3
                if options.strip:
                    s = shape.spec.stride
                    tiles = [
                        Tile(options.strip, options.warps),
                        Tile(options.strip, options.warps, options.turns),
                        Tile(-(-options.strip // s) * s, options.warps),
                    ]
                started = time.time()
                if options.plant_bug:
                    with plant_bug():
                        errors, problems, _ = differences(
                            shape, jnp.dtype(dtype), arch, tiles, options.route
                        )
                else:
                    errors, problems, _ = differences(
                        shape, jnp.dtype(dtype), arch, tiles, options.route
                    )
                failures += bool(problems)
                worst = max(errors.values())
                print(
                    f"sm_{arch.replace('.', '')} {dtype:8} {shape.name:32} worst error "
                    f"{worst:5.2f} of its budget, {time.time() - started:5.1f} s "
                    f"{'ok' if not problems else 'WRONG: ' + '; '.join(problems)}",
                    flush=True,
                )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
