"""Each of the three GPU kernels as a function of its own: for inspection and tuning."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.pallas import backward_pass, forward_kernel, key_kernel, query_kernel, tiling
from pallas_kernels.pallas.lanes import Layout
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Inputs, Normalizer
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
        arrays = backward_pass.in_memory(problem, inputs)
        layout = Layout.channels(problem)
        out, g = layout.to_memory(out), layout.to_memory(g)
        d_query, d_prior, sums = query_kernel.query_side(
            problem, chosen, False, arrays, out, g, normalizer
        )
        return d_query, d_prior, (sums.pairs, sums.findings) if sums else None

    def key_side(inputs: Inputs, g: Any, shift: Any, sums: Any) -> Any:
        arrays = backward_pass.in_memory(problem, inputs)
        found = query_kernel.Sums(*sums) if sums else None
        g = Layout.channels(problem).to_memory(g)
        return key_kernel.key_side(problem, chosen, False, arrays, g, shift, found)

    if name == "forward":
        return problem, chosen, forward, [inputs]
    softmax = problem.softmax
    if name == "query":
        normalizer = Normalizer(number, number) if softmax else None
        return problem, chosen, query_side, [inputs, out, out, normalizer]
    rows = problem.batch * problem.height
    pairs, findings = array((2 * number.size,), jnp.float32), array((rows,), jnp.int32)
    sums = (number, (pairs, findings)) if softmax else (None, None)
    return problem, chosen, key_side, [inputs, out, *sums]
