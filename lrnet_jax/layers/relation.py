"""What the two relation layers share: options, query, key, prior and output."""

import math
from typing import TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lrnet_jax.checks import check_positive, check_rngs
from lrnet_jax.layers.channel_transformation import ChannelTransformation, query_or_key
from lrnet_jax.layers.geometric_prior import Prior, make_prior, tabulate
from pallas_kernels.spec import Normalization, Similarity


class RelationOptions(TypedDict):
    """The options that both relation layers take; `LocalRelation` describes each of them."""

    channels_per_group: int
    query_key_dim: int
    similarity: Similarity
    scale: float | None
    normalization: Normalization
    prior: Prior
    prior_hidden: int | None
    prior_stddev: float
    dtype: jnp.dtype | None


class Relation(nnx.Module):
    """The parameters of a relation layer; a child decides which pixels an output pixel relates to.

    Args:
      in_features: C of the input.
      out_features: C of the output.
      strides: of the output grid.
      prior_size: (Ny, Nx), how many relative positions a prior table holds on each axis.
      rngs: the source of the initial weights.
      **options: as in `LocalRelation`.

    Raises:
      TypeError: strides, channels_per_group or query_key_dim is not an int, or rngs are not
        `nnx.Rngs`.
      ValueError: one of them is less than 1, or there is no such prior.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int,
        prior_size: tuple[int, int],
        *,
        rngs: nnx.Rngs,
        **options: Unpack[RelationOptions],
    ) -> None:
        check_rngs(rngs)
        self.in_features = in_features
        self.strides = strides
        self.channels_per_group = options["channels_per_group"]
        self.query_key_dim = options["query_key_dim"]
        for name in ("strides", "channels_per_group", "query_key_dim"):
            check_positive(name, getattr(self, name))
        self.similarity = options["similarity"]
        self.scale = (
            default_scale(self.similarity, self.query_key_dim)
            if options["scale"] is None
            else options["scale"]
        )
        self.normalization = options["normalization"]
        self.dtype = dtype = options["dtype"]

        groups = -(-in_features // self.channels_per_group)
        depth = groups * self.query_key_dim
        self.query = query_or_key(in_features, depth, strides=strides, dtype=dtype, rngs=rngs)
        self.key = query_or_key(in_features, depth, dtype=dtype, rngs=rngs)
        self.prior = make_prior(
            options["prior"],
            groups,
            prior_size,
            options["prior_hidden"],
            options["prior_stddev"],
            rngs,
        )
        self.output = ChannelTransformation(in_features, out_features, dtype=dtype, rngs=rngs)

    def prior_positions(self) -> tuple[np.ndarray, np.ndarray]:
        """The relative positions (Ny,) and (Nx,), float32, that a folded prior holds."""
        raise NotImplementedError

    def fold_prior(self) -> None:
        """Replaces a prior network by the table of its values; the outputs stay the same."""
        if self.prior is not None:
            self.prior = tabulate(self.prior, *self.prior_positions())

    def _to_vectors(self, features: jax.Array) -> jax.Array:
        """(B, H, W, G * D) -> (B, H, W, G, D)."""
        return features.reshape(*features.shape[:3], -1, self.query_key_dim)


def default_scale(similarity: Similarity, query_key_dim: int) -> float:
    """The paper's scale of Phi: 1, or 1 / sqrt(D) for multiplication ("we follow [25]")."""
    return 1 / math.sqrt(query_key_dim) if similarity == "multiplication" else 1.0
