"""Measures tiles on the GPU that is here and keeps the fastest (`benchmark --tune`)."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.api import implementations
from pallas_kernels.pallas import tiling
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.platform_switch import current_platform
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


def arguments(shape: Shape, dtype: Any, kernel: str, implementation: str = "pallas") -> list[Any]:
    """Arrays for `program`. With them kernels take the same path as with trained networks."""
    problem, _, _, avals = program(shape, dtype, kernel, None, implementation)
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
        arrays.append(normal(avals[1]))
        pairs, plain = jnp.stack([uniform, shift], -1), jnp.zeros(shape.value[:2], jnp.int32)
        arrays += (shift, pairs, plain) if problem.softmax else (None, None, None)
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
    implementation: str = "pallas",
) -> None:
    """Measures and saves the fastest tile of each kernel and shape, one after the other.

    What was measured before a failure or an interruption is kept.

    Args:
      shapes: with the batch size to measure at.
      dtype: of the arrays.
      rounds: of `CALLS` calls; the least counts, since noise only adds.
      report: gets a line per kernel and shape.
      implementation: whose kernels.

    Raises:
      RuntimeError: there is no GPU, or a shape cannot run. Nothing was measured.
    """
    shapes, device = list(shapes), tiling.gpu_name()
    if device is None:
        found = current_platform()
        raise RuntimeError(f"nothing to tune: JAX computes on {found} here, not on an NVIDIA GPU")
    for shape in shapes:
        support = implementations(*shape.abstract_inputs(dtype), **shape.options)
        if not support[implementation].runs:
            reason = support[implementation].reason
            raise RuntimeError(f"{implementation} cannot run {shape.name}: {reason}")
    for shape in shapes:
        for kernel in KERNELS:
            line = _tune(shape, dtype, kernel, rounds, device, implementation)
            report(f"{implementation} {shape.name} {kernel}: {line}")


def _tune(
    shape: Shape, dtype: Any, kernel: str, rounds: int, device: str, implementation: str
) -> str:
    """Measures one kernel, keeps its fastest tile, and says in a line what was found."""
    problem = program(shape, dtype, kernel, None, implementation).problem
    arrays = arguments(shape, dtype, kernel, implementation)
    times: dict[Tile, float] = {}
    for tile in choices(problem, kernel):
        function = program(shape, dtype, kernel, tile, implementation).function
        times[tile] = seconds(function, arrays, rounds)
    first = tiling.heuristic(problem, kernel)
    best = min(times, key=lambda tile: times[tile])
    tiling.save(device, kernel, problem, best, round(times[best] * 1e6, 2), implementation)
    return (
        f"{best} {times[best] * 1e6:.1f} us, {times[best] / times[first]:.3f} of the heuristic's "
        f"{first}, {len(times)} measured"
    )
