"""The layers of local relation networks, which are Flax NNX modules on (B, H, W, C) arrays."""

from lrnet_jax.layers.batch_norm import BatchNorm
from lrnet_jax.layers.local_relation import LocalRelation

__all__ = ["BatchNorm", "LocalRelation"]
