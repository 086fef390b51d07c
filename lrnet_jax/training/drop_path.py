"""Drop path: in training, each image skips the branch of some residual blocks at random."""

import jax
import jax.numpy as jnp

from lrnet_jax import random_keys


def draw_branch_scales(index: jax.Array, key: jax.Array, *, rate: float, blocks: int) -> jax.Array:
    """Factors of the branches: 0 where an image skips a block, 1 / (1 - r) elsewhere.

    Block l of L is skipped with probability r = rate * l / L, so the last one with `rate`. The
    factors have mean 1, and evaluation uses none.

    Args:
      index: (B,) int32, each image's place in the global batch. It alone decides an image's draws.
      key: of the step, the same on every device.
      rate: in [0, 1).
      blocks: L, the residual blocks of the network.

    Returns:
      (L, B) float32, for `Network.features`.

    Raises:
      ValueError: rate is not in [0, 1).

    Source: Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382, equation 4, with
    a draw for each image as in timm. Not in the paper's recipes.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    keep = 1 - rate * jnp.arange(1, blocks + 1, dtype=jnp.float32) / blocks
    key = jax.random.fold_in(key, random_keys.DROP_PATH)
    kept = jax.vmap(lambda place: jax.random.bernoulli(jax.random.fold_in(key, place), keep))(index)
    return (kept / keep).T
