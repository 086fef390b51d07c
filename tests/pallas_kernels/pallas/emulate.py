"""Executes the compiled GPU kernels on a CPU and compares them with the reference.

    PYTHONPATH=FOLDER_OF_PTXSIM python -m tests.pallas_kernels.pallas.emulate [--shapes='odd/*']
        [--implementation=jax_triton] [--arch=8.0,9.0] [--dtypes=float32,bfloat16] [--strip=2]
        [--route=plugin] [--plant-bug]

ptxsim compiles each kernel for the GPU and runs its PTX thread by thread. It sees what interpret
mode cannot: the inline assembly, addresses outside an array, races, bytes never written. It does
not measure time, and runs the Pallas kernels on JAX 0.10 (Python 3.11) alone. Networks are cut to
a few groups and a small image that keep alignment, partial groups and stride. Shapes that are then
equal run once. Exit code 1 means a difference or a hazard. Where ptxsim does not run or a package
is missing, the command prints why and exits with code 0.
"""

import argparse
import contextlib
import dataclasses
import fnmatch
import importlib.util
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any
from unittest import mock

from pallas_kernels.tools import cross_compilation

cross_compilation.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from pallas_kernels import jax_triton, pallas  # noqa: E402
from pallas_kernels.jax_triton import launch, stack  # noqa: E402
from pallas_kernels.jax_triton.plan import Plan  # noqa: E402
from pallas_kernels.pallas import backward_pass, forward_kernel  # noqa: E402
from pallas_kernels.pallas.lanes import priors  # noqa: E402
from pallas_kernels.pallas.tiling import Tile  # noqa: E402
from pallas_kernels.platform_switch import compiling_for  # noqa: E402
from pallas_kernels.spec import Inputs, Residuals  # noqa: E402
from pallas_kernels.tools.comparison import cut, errors  # noqa: E402
from pallas_kernels.tools.cross_compilation import GPUS  # noqa: E402
from pallas_kernels.tools.shapes import SHAPES, Shape  # noqa: E402

IMPLEMENTATIONS = {"pallas": pallas, "jax_triton": jax_triton}


def skipped(implementation: str = "pallas") -> str | None:
    """Why this machine cannot emulate; None if it can."""
    if importlib.util.find_spec("ptxsim") is None:
        return "ptxsim is not on PYTHONPATH"
    if implementation == "jax_triton":
        return stack.missing() or cross_compilation.missing(tools=())
    from ptxsim import jaxrun

    try:
        routes = jaxrun.routes()
    except AttributeError as error:  # it calls JAX's internals
        return f"ptxsim does not run on JAX {jax.__version__} ({error}); 0.10 of Python 3.11 does"
    if not routes:
        return (
            f"neither the CUDA plugin of JAX nor triton is installed; {cross_compilation.INSTALL}"
        )
    return None


def examine(
    implementation: str,
    shape: Shape,
    dtype: Any,
    arch: str,
    tiles: Sequence[Tile | None],
    route: str | None,
) -> tuple[float, list[str]]:
    """The worst error as a fraction of its budget, and all problems found."""
    run_kernels = {"pallas": _pallas, "jax_triton": _jax_triton}[implementation]
    runs: list[tuple[str, Any]] = []  # name of a kernel, what the emulator saw

    def run(*arrays: Any) -> Any:
        results, emulated = run_kernels(shape, tiles, arch, route, arrays)
        runs.extend(emulated)
        return results

    found = errors(shape, dtype, run)
    problems = [f"{x.result}: error {x.error:.2e} beyond {x.budget:.2e}" for x in found if not x.ok]
    for name, stats in runs:
        if stats.hazards:
            problems.append(f"{name}: {stats.hazards}")
        if any(stats.unwritten.values()):
            problems.append(f"{name}: never written: {stats.unwritten}")
    return max(x.error / x.budget for x in found), problems


def _pallas(
    shape: Shape, tiles: Sequence[Tile | None], arch: str, route: str | None, arrays: Sequence[Any]
) -> tuple[Any, list[tuple[str, Any]]]:
    """All five results of the Pallas kernels, and what the emulator saw."""
    from ptxsim import jaxrun

    forward, query, key = tiles

    def kernels(*arrays: Any) -> Any:
        inputs, d_out = Inputs(*arrays[:-1]), arrays[-1]
        out, normalizer = forward_kernel.forward(shape.spec, inputs, tile=forward)
        pair = None if query is None or key is None else (query, key)
        residuals = Residuals(inputs, out, normalizer)
        return out, *backward_pass.backward(shape.spec, residuals, d_out, tiles=pair)

    true_load, true_run = jaxrun.load, jaxrun.run

    def load(ptx: str, *arguments: Any, **options: Any) -> Any:
        return true_load(without_pairs(ptx), *arguments, **options)

    def run(ptx: str, *arguments: Any, **options: Any) -> Any:
        return true_run(without_pairs(ptx), *arguments, **options)

    with (
        compiling_for(float(arch)),
        mock.patch.dict(jaxrun.TARGETS, {"10.0": GPUS["b200"].description}),
        mock.patch.multiple(jaxrun, load=load, run=run),
    ):
        results, runs = jaxrun.simulate(kernels, *arrays, arch=arch, route=route)
    return results, [(run.name, run.stats) for run in runs]


def _jax_triton(
    shape: Shape, tiles: Sequence[Tile | None], arch: str, route: str | None, arrays: Sequence[Any]
) -> tuple[Any, list[tuple[str, Any]]]:
    """All five results of the Triton kernels, and what the emulator saw."""
    from ptxsim import jaxtriton

    del route  # Triton itself compiles them
    forward, query, key = tiles
    stack.load()

    def kernels(*arrays: Any) -> Any:
        inputs, d_out = Inputs(*arrays[:-1]), arrays[-1]
        out, normalizer = launch.forward(shape.spec, inputs, tile=forward)
        residuals = Residuals(inputs, out, normalizer)
        pair = None if query is None or key is None else (query, key)
        return out, *launch.backward(shape.spec, residuals, d_out, tiles=pair)

    true_calls = jaxtriton.calls

    def calls(lowered: Any) -> list[Any]:
        found = true_calls(lowered)
        return [dataclasses.replace(call, ptx=without_pairs(call.ptx)) for call in found]

    with compiling_for(float(arch)), mock.patch.object(jaxtriton, "calls", calls):
        results, runs = jaxtriton.simulate(kernels, *arrays, arch=arch)
    return results, [(call.name, stats) for call, stats in runs]


def without_pairs(ptx: str) -> str:
    """The same PTX with pairs of float32 computed one by one, and the larger of three in two steps.

    ptxsim does not know these instructions of compute capability 10.0.
    """

    def one_by_one(match: re.Match[str]) -> str:
        operation, result, *operands = match[1], *re.split(r",\s*", match[2])
        lines = [f".reg .f32 {', '.join(f'l{i}, h{i}' for i in range(len(operands)))};"]
        lines += [f"mov.b64 {{l{i}, h{i}}}, {x};" for i, x in enumerate(operands)]
        for half in "lh":
            names = ", ".join(f"{half}{i}" for i in range(len(operands)))
            lines.append(f"{operation}.f32 {half}0, {names};")
        return " ".join(["{", *lines, f"mov.b64 {result}, {{l0, h0}};", "}"])

    three = r"((?:max|min)\.f32)\s+([^,;]+), ([^,;]+), ([^,;]+), ([^,;]+);"
    ptx = re.sub(three, r"{ .reg .f32 m; \1 m, \3, \4; \1 \2, m, \5; }", ptx)
    return re.sub(r"((?:fma|mul|add|sub)\.rn)\.f32x2\s+([^;]*);", one_by_one, ptx)


def plant_bug(implementation: str) -> Any:
    """Lets kernels read wrong priors, as an off-by-one error would: of the next row, or tap."""
    if implementation == "jax_triton":
        true_tap = Plan.tap
        return mock.patch.object(
            Plan, "tap", lambda self, column, i: min(true_tap(self, column, i), self.kw - 2)
        )
    true_load = priors.Priors.load

    def wrong(self: priors.Priors, fast: bool, row: Any, group: Any, valid: Any) -> Any:
        below = jnp.minimum(row + 1, self.problem.spec.kernel_size[0] - 1)
        return true_load(self, fast, below, group, valid)

    return mock.patch.object(priors.Priors, "load", wrong)


def chosen(patterns: str, implementation: str, dtype: str) -> Iterable[Shape]:
    """The named shapes that it runs, cut down; each small problem occurs once."""
    seen = set()
    for name, shape in SHAPES.items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split(",")):
            small = cut(shape)
            reason = IMPLEMENTATIONS[implementation].unsupported(
                small.spec, small.abstract_inputs(dtype)
            )
            if reason:
                print(f"not run: {small.name}: {reason}")
            elif small.name not in seen:
                seen.add(small.name)
                yield small


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="*", help="comma-separated patterns of shapes.py")
    parser.add_argument("--implementation", default="pallas", choices=IMPLEMENTATIONS)
    parser.add_argument("--arch", default="8.0,9.0")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--strip", type=int, default=0, help="0: the tile that would be used")
    parser.add_argument("--warps", type=int, default=4)
    parser.add_argument("--strips-per-lane", type=int, default=2)
    parser.add_argument("--route", default=None, help="ptxsim's: xla (default), plugin, triton")
    parser.add_argument("--plant-bug", action="store_true", help="show that an error is caught")
    options = parser.parse_args(arguments)
    reason = skipped(options.implementation)
    if reason:
        print(f"SKIPPED: {reason}")
        return 0
    failures = 0
    for arch in options.arch.split(","):
        for dtype in options.dtypes.split(","):
            for shape in chosen(options.shapes, options.implementation, dtype):
                tiles: list[Tile | None] = [None] * 3
                if options.strip:
                    s = shape.spec.stride
                    tiles = [
                        Tile(options.strip, options.warps),
                        Tile(options.strip, options.warps, options.strips_per_lane),
                        Tile(-(-options.strip // s) * s, options.warps),
                    ]
                started = time.time()
                with (
                    plant_bug(options.implementation)
                    if options.plant_bug
                    else contextlib.nullcontext()
                ):
                    worst, problems = examine(
                        options.implementation, shape, jnp.dtype(dtype), arch, tiles, options.route
                    )
                failures += bool(problems)
                print(
                    f"sm_{arch.replace('.', '')} {dtype:8} {shape.name:32} worst error "
                    f"{worst:5.2f} of its budget, {time.time() - started:5.1f} s "
                    f"{'ok' if not problems else 'WRONG: ' + '; '.join(problems)}",
                    flush=True,
                )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
