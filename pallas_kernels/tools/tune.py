"""Measures tiles on the GPU that is here and keeps the fastest (`benchmark --tune`)."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import pallas
from pallas_kernels.pallas import tiling
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.query_taps import PLAIN, PixelStats
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Normalizer
from pallas_kernels.tools.kernel_programs import KERNELS, program
from pallas_kernels.tools.shapes import Shape

WARPS = (2, 4, 8)
CALLS = 20  # dispatched one after the other, so that the GPU never waits for the host


def choices(problem: Problem, kernel: str) -> list[Tile]:
    """The tiles worth measuring: the heuristic's and others, the heuristic's first."""
    first = tiling.heuristic(problem, kernel)
    strips = sorted(tiling.candidates(problem, kernel))
    width = problem.width if kernel == "key" else problem.out_size[1]
    # A strip that wastes a third of its pixels or is half as long as it could be never wins.
    strips = [s for s in strips if s >= max(strips) / 2 and s * -(-width // s) <= 1.34 * width]
    found = {Tile(s, w, first.strips_per_lane) for s in strips for w in WARPS}
    if first.strips_per_lane > 1:
        counts = (1, first.strips_per_lane // 2, 2 * first.strips_per_lane)
        found |= {Tile(first.strip, first.warps, t) for t in counts}
    return [first, *sorted(found - {first}, key=lambda x: (x.strip, x.warps, x.strips_per_lane))]


def arguments(shape: Shape, dtype: Any, kernel: str) -> list[Any]:
    """Arrays for `program`. With them kernels take the same path as with trained networks."""
    problem, _, _, avals = program(shape, dtype, kernel, None)
    draw = iter(jax.random.split(jax.random.key(0), 8))

    def normal(x: Any) -> Any:
        return jax.random.normal(next(draw), x.shape, x.dtype)

    uniform = jnp.full(shape.query[:4], 1.0 / shape.spec.taps, jnp.float32)
    shift = jnp.zeros_like(uniform)
    arrays: list[Any] = [jax.tree.map(normal, avals[0])]
    if kernel == "query":
        arrays += [normal(x) for x in avals[1:3]]
        arrays.append(Normalizer(shift, uniform) if problem.softmax else None)
    elif kernel == "key":
        pairs = jnp.stack([uniform.reshape(-1), shift.reshape(-1)], 1).reshape(-1)
        rows = problem.batch * problem.height
        stats = PixelStats(pairs, jnp.full((rows,), PLAIN, jnp.int32))
        arrays += [normal(avals[1]), *((shift, stats) if problem.softmax else (None, None))]
    return arrays


def seconds(function: Callable[..., Any], arrays: list[Any], rounds: int) -> float:
    """The least time of one call over several rounds, compilation not counted."""
    compiled = jax.jit(function).lower(*arrays).compile()
    jax.block_until_ready(compiled(*arrays))
    least = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready([compiled(*arrays) for _ in range(CALLS)])
        least = min(least, (time.perf_counter() - start) / CALLS)
    return least


def tune(
    shapes: Iterable[Shape],
    dtype: Any,
    rounds: int = 10,
    report: Callable[[str], None] = print,
) -> None:
    """Measures and saves the fastest tile of each kernel and shape, one after the other.

    What was measured before a failure or an interruption is kept.

    Args:
      shapes: with the batch size to measure at.
      dtype: of the arrays.
      rounds: of `CALLS` calls; the least counts, since noise only adds.
      report: gets a line per kernel and shape.

    Raises:
      RuntimeError: there is no GPU that runs the kernels.
    """
    reason = pallas.unavailable()
    device = tiling.gpu_name()
    if reason or device is None:
        raise RuntimeError(f"nothing to tune: {reason}")
    for shape in shapes:
        for kernel in KERNELS:
            problem = program(shape, dtype, kernel, None).problem
            arrays = arguments(shape, dtype, kernel)
            times: dict[Tile, float] = {}
            for tile in choices(problem, kernel):
                function = program(shape, dtype, kernel, tile).function
                times[tile] = seconds(function, arrays, rounds)
            first = tiling.heuristic(problem, kernel)
            best = min(times, key=lambda tile: times[tile])
            tiling.save(device, kernel, problem, best, round(times[best] * 1e6, 2))
            report(
                f"{shape.name} {kernel}: {best} {times[best] * 1e6:.1f} us, "
                f"{times[best] / times[first]:.3f} of the heuristic's {first}, "
                f"{len(times)} measured"
            )
