"""The three kernels of jax_triton, compiled for an absent GPU, and how programs use them."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from pallas_kernels.jax_triton import launch, stack
from pallas_kernels.jax_triton.launch import PixelStats
from pallas_kernels.jax_triton.plan import Plan
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.platform_switch import compiling_for
from pallas_kernels.spec import Inputs, Normalizer, Residuals
from pallas_kernels.tools import cross_compilation
from pallas_kernels.tools.cross_compilation import Gpu, Kernel
from pallas_kernels.tools.kernel_programs import program
from pallas_kernels.tools.shapes import Shape

if TYPE_CHECKING:  # it imports Pallas-Triton, which JAX need not have
    from pallas_kernels.pallas.strips import BorderCase


class Compiled(NamedTuple):
    """A kernel and the plan that it was compiled with."""

    kernel: Kernel
    plan: Plan


def compiled(gpu: Gpu, shape: Shape, dtype: Any, name: str, tile: Tile | None) -> Compiled:
    """Compiles one kernel as jax-triton would.

    Args:
      gpu: the GPU to compile for.
      shape: the problem.
      dtype: of all arrays but the copy of the prior.
      name: "forward", "query" or "key".
      tile: None for the one that would be used.
    """
    with compiling_for(gpu.compute_capability), stack.recorded() as calls:
        _, _, function, arguments = program(shape, dtype, name, tile, launch.NAME)
        jax.eval_shape(function, *arguments)
    [(call, arrays)] = calls
    ptx, shared = call.compile(arrays)
    grid = int(np.prod(call.grid))
    kernel = cross_compilation.assemble(call.name, ptx, grid=grid, warps=call.warps, shared=shared)
    return Compiled(kernel, call.plan)


def _forward(problem: Problem, tile: Tile, inputs: Inputs) -> tuple[jax.Array, Normalizer | None]:
    return launch.forward(problem.spec, inputs, tile=tile)


def _query(
    problem: Problem,
    tile: Tile,
    inputs: Inputs,
    out: jax.Array,
    d_out: jax.Array,
    normalizer: Normalizer | None,
) -> tuple[jax.Array, jax.Array | None, PixelStats | None]:
    residuals = Residuals(inputs, out, normalizer)
    return launch.query_gradients(problem.spec, tile, residuals, d_out)


def _key(
    problem: Problem,
    tile: Tile,
    inputs: Inputs,
    d_out: jax.Array,
    shift: jax.Array | None,
    pairs: jax.Array | None,
    severity: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    stats = PixelStats(pairs, severity) if pairs is not None and severity is not None else None
    return launch.key_gradients(problem.spec, tile, inputs, d_out, shift, stats)


FUNCTIONS = {"forward": _forward, "query": _query, "key": _key}


def border_cases(plan: Plan) -> "list[BorderCase]":
    """The cases of a plan, each with its strips; a strip belongs to the first that fits."""
    from pallas_kernels.pallas.strips import BorderCase

    found, taken = [], set[int]()
    for case in plan.cases:
        strips = [i for i in range(case.first, case.last + 1) if i not in taken]
        taken.update(strips)
        columns = None if case.masked else tuple(range(case.low, case.high))
        found.append(BorderCase(tuple(strips), columns))
    return found


def pairs_of_case(plan: Plan, number: int) -> int:
    """(pixel, tap) pairs of a window row, in the code for one case."""
    case = plan.cases[number]
    columns, pixels = range(case.low, case.high), range(plan.strip)
    return sum(plan.tap(c, i) >= 0 for c in columns for i in pixels)


def rows_per_program(plan: Plan) -> float:
    """Trips of the loop over window rows, on average; as `kernels/places.py` has it."""
    run = plan.rows // plan.phases * plan.groups
    trips = []
    for first in range(0, plan.round_lanes, plan.lanes):
        last = min(first + plan.lanes, plan.round_lanes) - 1
        low, high, phase = 0, plan.rows - 1, 0
        if first // run == last // run:
            phase = first // run % plan.phases
            per_phase = plan.rows // plan.phases
            low, high = (x // plan.groups % per_phase * plan.phases + phase for x in (first, last))
        trips.append(_trips(plan, low, high, phase))
    return float(np.mean(trips))


def _trips(plan: Plan, low: int, high: int, phase: int) -> int:
    s = plan.stride
    if not plan.by_key:
        start = max(plan.top - high * s, 0)
        return min(plan.height + plan.top - low * s, plan.kh) - start
    start = max((low + plan.top) // s - (plan.out_height - 1), 0)
    same = plan.phases > 1 and (high - low) % s == 0
    offset = (phase + plan.top) % s if same else 0
    return min((high + plan.top) // s, (plan.kh - 1 - offset) // s) + 1 - start
