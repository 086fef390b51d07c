"""Compares the fused kernels with the reference on shapes of the networks and odd ones."""

import fnmatch
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.config import ConfigError
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Inputs, Residuals
from pallas_kernels.tools.comparison import REASON, Error, cut, errors
from pallas_kernels.tools.shapes import SHAPES, Shape

# In interpret mode the kernels of one shape and dtype compile for seconds.
INTERPRETED_SHAPES = (
    "odd/partial_group", "odd/rectangular", "odd/stride3", "odd/no_softmax_depth4",
)  # fmt: skip


def choose_shapes(patterns: Sequence[str] | None, batch: int, *, interpret: bool) -> list[Shape]:
    """The shapes whose names match a pattern, each once.

    Args:
      patterns: of names, such as "lrnet26/*"; None for all, or a few in interpret mode.
      batch: images of a shape of a network.
      interpret: whether these shapes are cut down instead.

    Raises:
      ConfigError: no shape matches.
    """
    chosen = patterns or (INTERPRETED_SHAPES if interpret else ("*",))
    shapes: dict[str, Shape] = {}
    for name, shape in SHAPES.items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in chosen):
            if interpret:
                shape = cut(shape)
            elif not name.startswith("odd/"):
                shape = shape.with_batch(batch)
            shapes[shape.name] = shape
    if not shapes:
        raise ConfigError(f"--shapes={','.join(chosen)} matches none of {', '.join(SHAPES)}")
    return list(shapes.values())


def compare(shape: Shape, dtype: str, implementation: str, *, interpret: bool) -> Iterator[Error]:
    """Runs kernels and reference on the same inputs; yields the error of each result."""
    if implementation == "pallas":
        run = jax.jit(functools.partial(run_kernels, shape, interpret))
    else:
        run = jax.jit(functools.partial(run_implementation, shape, implementation))
    yield from errors(shape, jnp.dtype(dtype), run)


def run_kernels(shape: Shape, interpret: bool, *arrays: Any) -> tuple[jax.Array | None, ...]:
    """The output and the four gradients by the kernels.

    Args:
      shape: the problem.
      interpret: whether the kernels run in interpret mode.
      *arrays: query, key, value, prior and the gradient of the output.
    """
    from pallas_kernels.pallas import (
        backward_pass,
        forward_kernel,
    )  # JAX need not have their backend

    inputs, d_out = Inputs(*arrays[:-1]), arrays[-1]
    tile: Tile | None = None
    tiles: tuple[Tile, Tile] | None = None
    if interpret:  # here long strips are slow to compile and test nothing more
        key_strip = -(-2 // shape.spec.stride) * shape.spec.stride
        tile, tiles = Tile(2, 1), (Tile(2, 1, strips_per_lane=2), Tile(key_strip, 1))
    out, normalizer = forward_kernel.forward(shape.spec, inputs, interpret=interpret, tile=tile)
    residuals = Residuals(inputs, out, normalizer)
    gradients = backward_pass.backward(
        shape.spec, residuals, d_out, interpret=interpret, tiles=tiles
    )
    return out, *gradients


def run_implementation(
    shape: Shape, implementation: str, *arrays: Any
) -> tuple[jax.Array | None, ...]:
    """The output and the four gradients by an implementation that runs here; see `run_kernels`."""
    module, inputs = IMPLEMENTATIONS[implementation], Inputs(*arrays[:-1])
    out, normalizer = module.forward(shape.spec, inputs)
    return out, *module.backward(shape.spec, Residuals(inputs, out, normalizer), arrays[-1])


def describe_budgets(dtypes: Sequence[str]) -> str:
    """How the budgets of errors follow from the dtypes."""
    lines = ["Budgets, in units of the terms that make up a result:"]
    for dtype in dtypes:
        prefix = "as float32, " if jnp.dtype(dtype).itemsize == 2 else ""
        lines.append(f"  {dtype}: {prefix}{REASON[dtype]}")
    return "\n".join(lines)
