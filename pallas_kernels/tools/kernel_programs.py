"""Each of the three GPU kernels as a function of its own, for counting and tuning."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.pallas import backward_pass, forward_kernel, key_kernel, query_kernel, tiling
from pallas_kernels.pallas.lanes import operands
from pallas_kernels.pallas.lanes.memory import Layout
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.query_taps import PixelStats
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Inputs, Normalizer, Residuals
from pallas_kernels.tools.shapes import Shape

KERNELS = ("forward", "query", "key")


class KernelProgram(NamedTuple):
    """One kernel and the XLA code around it, to compile or to time alone.

    Attributes:
      problem: the problem that it solves.
      tile: how the problem is cut.
      function: runs the kernel.
      arguments: `jax.ShapeDtypeStruct` trees, for the function.
    """

    problem: Problem
    tile: Tile
    function: Callable[..., Any]
    arguments: list[Any]


def program(shape: Shape, dtype: Any, name: str, tile: Tile | None) -> KernelProgram:
    """The program of one kernel.

    Args:
      shape: the problem.
      dtype: of all arrays but the normaliser and what the query kernel writes for the key kernel.
      name: one of `KERNELS`.
      tile: None for the one that would be used.
    """
    kernels: dict[str, tuple[Callable[..., Any], Callable[[Problem], Tile]]] = {
        "forward": (_forward, tiling.forward_tile),
        "query": (_query, tiling.query_tile),
        "key": (_key, tiling.key_tile),
    }
    function, choose_tile = kernels[name]
    problem = Problem.of(shape.spec, shape.abstract_inputs(dtype))
    tile = tile or choose_tile(problem)
    run = functools.partial(function, problem, tile)
    return KernelProgram(problem, tile, run, _arguments(shape, jnp.dtype(dtype), name))


def _forward(problem: Problem, tile: Tile, inputs: Inputs) -> Any:
    return forward_kernel.forward(problem.spec, inputs, tile=tile)


def _query(
    problem: Problem,
    tile: Tile,
    inputs: Inputs,
    out: jax.Array,
    d_out: jax.Array,
    normalizer: Normalizer | None,
) -> Any:
    flat, d_out = backward_pass.in_memory(problem, Residuals(inputs, out, normalizer), d_out)
    return query_kernel.query_gradients(problem, tile, flat, d_out, interpret=False)


def _key(
    problem: Problem,
    tile: Tile,
    inputs: Inputs,
    d_out: jax.Array,
    shift: jax.Array | None,
    stats: PixelStats | None,
) -> Any:
    flat, d_out = operands.in_memory(problem, inputs), Layout.value(problem).flatten(d_out)
    shift = None if shift is None else shift.reshape(-1)
    return key_kernel.key_gradients(problem, tile, flat, d_out, shift, stats, interpret=False)


def _arguments(shape: Shape, dtype: jnp.dtype, name: str) -> list[Any]:
    inputs, out = shape.abstract_inputs(dtype), jax.ShapeDtypeStruct(shape.out, dtype)
    number: Any = jax.ShapeDtypeStruct(shape.query[:4], jnp.float32)
    pairs: Any = jax.ShapeDtypeStruct((2 * number.size,), jnp.float32)
    severity: Any = jax.ShapeDtypeStruct((shape.batch * shape.height,), jnp.int32)
    softmax = shape.spec.normalization == "softmax"
    if name == "forward":
        return [inputs]
    if name == "query":
        return [inputs, out, out, Normalizer(number, number) if softmax else None]
    return [inputs, out, *((number, PixelStats(pairs, severity)) if softmax else (None, None))]
