"""The functions of `kernel_programs` for the Pallas kernels."""

import jax

from pallas_kernels.pallas import backward_pass, forward_kernel, key_kernel, query_kernel
from pallas_kernels.pallas.lanes import operands
from pallas_kernels.pallas.lanes.memory import Layout
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.query_taps import PixelStats
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Inputs, Normalizer, Residuals


def _forward(problem: Problem, tile: Tile, inputs: Inputs) -> tuple[jax.Array, Normalizer | None]:
    return forward_kernel.forward(problem.spec, inputs, tile=tile)


def _query(
    problem: Problem,
    tile: Tile,
    inputs: Inputs,
    out: jax.Array,
    d_out: jax.Array,
    normalizer: Normalizer | None,
) -> tuple[jax.Array, jax.Array | None, PixelStats | None]:
    flat, d_out = backward_pass.in_memory(problem, Residuals(inputs, out, normalizer), d_out)
    return query_kernel.query_gradients(problem, tile, flat, d_out, interpret=False)


def _key(
    problem: Problem,
    tile: Tile,
    inputs: Inputs,
    d_out: jax.Array,
    shift: jax.Array | None,
    pairs: jax.Array | None,
    severity: jax.Array | None,
) -> key_kernel.Results:
    flat, d_out = operands.in_memory(problem, inputs), Layout.value(problem).flatten(d_out)
    stats = None
    if shift is not None and pairs is not None and severity is not None:
        shift = shift.reshape(-1)
        stats = PixelStats(pairs.reshape(-1), severity.reshape(-1))
    return key_kernel.key_gradients(problem, tile, flat, d_out, shift, stats, interpret=False)


FUNCTIONS = {"forward": _forward, "query": _query, "key": _key}
