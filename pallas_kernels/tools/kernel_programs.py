"""Each of the three GPU kernels as a function of its own, for counting and tuning."""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.pallas import tiling
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Normalizer
from pallas_kernels.tools.shapes import Shape

KERNELS = ("forward", "query", "key")
# Implementations that consist of these kernels, and where their functions are. The modules are
# imported when they are needed: JAX may have no Pallas-Triton, and jax-triton may not be installed.
MODULES = {
    "pallas": "pallas_kernels.tools.pallas_programs",
    "jax_triton": "pallas_kernels.tools.triton_programs",
}


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


def program(
    shape: Shape, dtype: Any, name: str, tile: Tile | None, implementation: str = "pallas"
) -> KernelProgram:
    """The program of one kernel.

    Args:
      shape: the problem.
      dtype: of all arrays but the normaliser and what the query kernel writes for the key kernel.
      name: one of `KERNELS`.
      tile: None for the one that would be used.
      implementation: one of `MODULES`.
    """
    problem = Problem.of(shape.spec, shape.abstract_inputs(dtype))
    tile = tile or tiling.chosen(problem, name, implementation)
    function = importlib.import_module(MODULES[implementation]).FUNCTIONS[name]
    run = functools.partial(function, problem, tile)
    return KernelProgram(problem, tile, run, _arguments(shape, jnp.dtype(dtype), name))


def _arguments(shape: Shape, dtype: jnp.dtype, name: str) -> list[Any]:
    """Those of a kernel's function, behind the problem and the tile.

    forward  inputs
    query    inputs, out, d_out, normalizer
    key      inputs, d_out, shift, and what the query kernel found: factor and -delta of each output
             pixel and group (B, Ho, Wo, G, 2), and the severity of each row of keys (B, H)

    Without softmax there are no normaliser, no shift and no findings, but None.
    """
    inputs, out = shape.abstract_inputs(dtype), jax.ShapeDtypeStruct(shape.out, dtype)
    number = jax.ShapeDtypeStruct(shape.query[:4], jnp.float32)
    pairs = jax.ShapeDtypeStruct((*shape.query[:4], 2), jnp.float32)
    severity = jax.ShapeDtypeStruct((shape.batch, shape.height), jnp.int32)
    softmax = shape.spec.normalization == "softmax"
    if name == "forward":
        return [inputs]
    if name == "query":
        normalizer: Any = Normalizer(number, number)  # type: ignore[arg-type]
        return [inputs, out, out, normalizer if softmax else None]
    return [inputs, out, *((number, pairs, severity) if softmax else (None, None, None))]
