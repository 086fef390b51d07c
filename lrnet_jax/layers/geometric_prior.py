"""Geometric priors: a logit per group and relative position, whatever the image shows.

Both kinds answer `prior(y, x)` for relative positions y (Ny,) and x (Nx,) with (G, Ny, Nx)
float32. A network knows any positions; a table only those it was made for, which is what folding
a trained network gives. Always float32: the positions' logits are added to the similarity's
before the softmax, and cost nothing.
"""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lrnet_jax.layers.channel_transformation import normal, uniform, zeros

Prior = Literal["network", "table", "none"]
PRIORS: tuple[Prior, ...] = get_args(Prior)


def window_positions(kernel_size: int) -> np.ndarray:
    """Relative positions of a window's taps on one axis, from -1 to 1; (0,) for a window of 1."""
    radius = kernel_size // 2
    return (np.arange(kernel_size, dtype=np.float32) - radius) / max(radius, 1)


class PriorNetwork(nnx.Module):
    """prior[:, i, j] = W2 relu(W1 (y_i, x_j) + b1) + b2.

    Args:
      groups: G.
      hidden: width of the hidden layer. G, the default, gives the parameter counts of the paper
        to the digits that it prints; it states neither this width nor the initial values.
      stddev: of the initial output weights. At 0.01 the prior starts almost flat and training bends
        it; at 1 each group starts with a window of its own.
      rngs: where the initial weights come from.

    Source: Section 3.3 of the paper; the hidden width follows from its counts, the initial values
    are ours.
    """

    def __init__(
        self, groups: int, hidden: int | None = None, stddev: float = 0.01, *, rngs: nnx.Rngs
    ) -> None:
        hidden = groups if hidden is None else hidden
        self.hidden = nnx.Linear(
            2,
            hidden,
            precision="highest",
            kernel_init=functools.partial(normal, stddev=1.0),
            bias_init=uniform,
            rngs=rngs,
        )
        self.output = nnx.Linear(
            hidden,
            groups,
            precision="highest",
            kernel_init=functools.partial(normal, stddev=stddev),
            bias_init=zeros,
            rngs=rngs,
        )

    def __call__(self, y: np.ndarray, x: np.ndarray) -> jax.Array:
        """Positions (Ny,) and (Nx,) -> (G, Ny, Nx) float32."""
        positions = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)  # (Ny,Nx,2)
        logits = self.output(jax.nn.relu(self.hidden(jnp.asarray(positions, jnp.float32))))
        return jnp.transpose(logits, (2, 0, 1))


class PriorTable(nnx.Module):
    """A learnt logit for each group and position (the paper's G*), initially zero.

    Args:
      groups: G.
      size: (Ny, Nx), the number of positions on each axis.
    """

    def __init__(self, groups: int, size: tuple[int, int]) -> None:
        self.table = nnx.Param(jax.device_put(np.zeros((groups, *size), np.float32)))

    def __call__(self, y: np.ndarray, x: np.ndarray) -> jax.Array:
        """The table, (G, Ny, Nx) float32.

        Raises:
          ValueError: the table was made for another number of positions.
        """
        table = self.table[...]
        if table.shape[1:] != (len(y), len(x)):
            raise ValueError(
                f"this prior is a table of {table.shape[1]} x {table.shape[2]} positions, but "
                f"{len(y)} x {len(x)} are asked for; use prior='network', or the kernel and "
                "image size that the table was made for"
            )
        return table


def make_prior(
    kind: Prior,
    groups: int,
    size: tuple[int, int],
    hidden: int | None,
    stddev: float,
    rngs: nnx.Rngs,
) -> PriorNetwork | PriorTable | None:
    """The prior module of a kind, for `size` = (Ny, Nx) positions."""
    if kind == "network":
        return PriorNetwork(groups, hidden, stddev, rngs=rngs)
    if kind == "table":
        return PriorTable(groups, size)
    if kind == "none":
        return None
    raise ValueError(f"prior must be one of {', '.join(PRIORS)}; got {kind!r}")


def fold(prior: PriorNetwork | PriorTable, y: np.ndarray, x: np.ndarray) -> PriorTable:
    """The table that equals a prior at the given positions, for inference."""
    logits = prior(y, x)
    table = PriorTable(logits.shape[0], (len(y), len(x)))
    table.table[...] = logits
    return table
