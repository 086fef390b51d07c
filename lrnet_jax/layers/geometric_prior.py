"""Geometric priors, which add a logit per group and relative position, whatever the image shows.

For relative positions y (Ny,) and x (Nx,), `prior(y, x)` returns (G, Ny, Nx) float32. A prior
network accepts any positions. A prior table holds the logits of fixed positions; a trained network
is folded into one. The logits are float32 in every network, as the similarities are to which they
are added; there are so few of them that this costs nothing.
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
    """Relative positions of a window's taps on one axis.

    Args:
      kernel_size: k, odd.

    Returns:
      (k,) float32 from -1 to 1, or (0,) for k = 1.
    """
    radius = kernel_size // 2
    return (np.arange(kernel_size, dtype=np.float32) - radius) / max(radius, 1)


class PriorNetwork(nnx.Module):
    """prior[:, i, j] = W2 relu(W1 (y_i, x_j) + b1) + b2.

    Args:
      groups: G.
      hidden: width of the hidden layer, None for G.
      stddev: standard deviation of the initial output weights. With 0.01 the prior starts almost
        flat. With 1 each group starts with a different window.
      rngs: the source of the initial weights.

    Source: Section 3.3 of the paper. It states neither the hidden width nor the initial values. A
    width of G gives the paper's parameter counts to the digits that it prints; the initial values
    are our choice.
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

    Source: G* in Table 3 of the paper.
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
                f"{len(y)} x {len(x)} are needed; use prior='network', or the kernel and "
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
    """Builds the prior of a kind.

    Args:
      kind: "network", "table" or "none".
      groups: G.
      size: (Ny, Nx), the number of positions of a table.
      hidden: as in `PriorNetwork`.
      stddev: as in `PriorNetwork`.
      rngs: the source of a network's initial weights.

    Returns:
      The prior, or None for "none".

    Raises:
      ValueError: there is no such kind.
    """
    if kind == "network":
        return PriorNetwork(groups, hidden, stddev, rngs=rngs)
    if kind == "table":
        return PriorTable(groups, size)
    if kind == "none":
        return None
    raise ValueError(f"prior must be one of {', '.join(PRIORS)}; got {kind!r}")


def tabulate(prior: PriorNetwork | PriorTable, y: np.ndarray, x: np.ndarray) -> PriorTable:
    """The table that equals a prior at positions y (Ny,) and x (Nx,)."""
    logits = prior(y, x)
    table = PriorTable(logits.shape[0], (len(y), len(x)))
    table.table[...] = logits
    return table
