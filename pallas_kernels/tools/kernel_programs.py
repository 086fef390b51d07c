"""Each of the three GPU kernels as a function of its own: for inspection and tuning."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.pallas import (
    backward_pass,
    forward_kernel,
    key_kernel,
    operands,
    query_kernel,
    tiling,
)
from pallas_kernels.pallas.memory import Layout
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.query_program import PixelStats
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Inputs, Normalizer, Residuals
from pallas_kernels.tools.shapes import Shape

KERNELS = ("forward", "query", "key")


def program(
    shape: Shape, dtype: Any, name: str, tile: Tile | None
) -> tuple[Problem, Tile, Callable[..., Any], list[Any]]:
    """One kernel and the XLA code around it, to compile or to time alone.

    Args:
      shape: the problem.
      dtype: of all arrays but the normaliser and what the kernels leave for each other.
      name: one of `KERNELS`.
      tile: None for the one that would be used.

    Returns:
      The problem, the tile, a function, and `jax.ShapeDtypeStruct` trees of its arguments.
    """

    def array(size: tuple[int, ...], dtype: Any = dtype) -> Any:
        return jax.ShapeDtypeStruct(size, jnp.dtype(dtype))

    inputs = Inputs(
        array(shape.query),
        array(shape.key),
        array(shape.value),
        None if shape.prior is None else array(shape.prior),
    )
    out, number = array(shape.out), array(shape.query[:4], jnp.float32)
    problem = Problem.of(shape.spec, inputs)
    choose = {
        "forward": tiling.forward_tile,
        "query": tiling.query_tile,
        "key": tiling.key_tile,
    }[name]
    chosen = tile or choose(problem)

    def forward(inputs: Inputs) -> Any:
        return forward_kernel.forward(shape.spec, inputs, tile=chosen)

    def query_side(inputs: Inputs, out: Any, g: Any, normalizer: Normalizer | None) -> Any:
        flat, g = backward_pass.in_memory(problem, Residuals(inputs, out, normalizer), g)
        return query_kernel.query_gradients(problem, chosen, flat, g, interpret=False)

    def key_side(inputs: Inputs, g: Any, shift: Any, stats: Any) -> Any:
        flat, g = operands.in_memory(problem, inputs), Layout.value(problem).flatten(g)
        shift = None if shift is None else shift.reshape(-1)
        return key_kernel.key_gradients(problem, chosen, flat, g, shift, stats, interpret=False)

    if name == "forward":
        return problem, chosen, forward, [inputs]
    softmax = problem.softmax
    if name == "query":
        normalizer = Normalizer(number, number) if softmax else None
        return problem, chosen, query_side, [inputs, out, out, normalizer]
    rows = problem.batch * problem.height
    pairs, severity = array((2 * number.size,), jnp.float32), array((rows,), jnp.int32)
    stats = PixelStats(pairs, severity)
    return problem, chosen, key_side, [inputs, out, *((number, stats) if softmax else (None, None))]
