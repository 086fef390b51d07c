"""The local relation layer: a drop-in for a k x k convolution."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from lrnet_jax.checks import check_odd, check_positive
from lrnet_jax.layers.channel_transformation import channel_transformation, query_or_key
from lrnet_jax.layers.geometric_prior import Prior, fold, make_prior, window_positions
from pallas_kernels import local_relation
from pallas_kernels.spec import Normalization, Similarity


class LocalRelation(nnx.Module):
    """Aggregates each pixel's k x k neighbourhood with weights from appearance and geometry.

    With q = CT(x at the output pixels), k = CT(x) and g = c // channels_per_group:

        w[p, :, g] = softmax over taps t of ( scale * Phi(q[p, g], k[p + t, g]) + prior[g, t] )
        y[p]       = CT( sum over t of  w[p, t, g] * x[p + t] )

    The value is x itself; nothing is learnt per tap but the prior. Stride and borders are a
    convolution's: output (i, j) is centred on input (i * strides, j * strides), and taps outside
    the image do not take part.

        nnx.Conv(64, 128, (7, 7), strides=2, padding=3, use_bias=False, rngs=rngs)
        LocalRelation(64, 128, kernel_size=7, strides=2, rngs=rngs)

    Args:
      in_features: C of the input.
      out_features: C of the output.
      kernel_size: odd k.
      strides: s >= 1; Ho = (H - 1) // s + 1.
      channels_per_group: the paper's m, how many channels share one weight; G = ceil(C / m).
      query_key_dim: D, length of a query or key vector.
      similarity: "squared_difference", "absolute_difference" or "multiplication" (Eqns. 3 to 5).
      scale: multiplies Phi; None for the paper's: 1, or 1 / sqrt(D) for multiplication.
      normalization: "softmax" over the taps or "none".
      prior: "network" (a small network of the relative position), "table" (a learnt logit for
        each tap, the paper's G*) or "none".
      prior_hidden: hidden width of the prior network, None for G.
      prior_stddev: standard deviation of the prior network's initial output weights.
      dilation: distance between taps in input pixels.
      dtype: of activations, None for that of input and parameters together. Parameters are
        float32, and so are similarity, softmax and sums.
      implementation: of `pallas_kernels.api`; None picks the fastest that runs.
      rngs: where the initial weights come from.

    Source: Section 3 and figure 2 of the paper; the output CT is the "+1" of Eqn. 6.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int = 7,
        strides: int = 1,
        *,
        channels_per_group: int = 8,
        query_key_dim: int = 1,
        similarity: Similarity = "squared_difference",
        scale: float | None = None,
        normalization: Normalization = "softmax",
        prior: Prior = "network",
        prior_hidden: int | None = None,
        prior_stddev: float = 0.01,
        dilation: int = 1,
        dtype: jnp.dtype | None = None,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        check_odd("kernel_size", kernel_size)
        for name, number in (
            ("strides", strides),
            ("channels_per_group", channels_per_group),
            ("query_key_dim", query_key_dim),
            ("dilation", dilation),
        ):
            check_positive(name, number)
        groups = -(-in_features // channels_per_group)
        self.kernel_size = kernel_size
        self.strides = strides
        self.channels_per_group = channels_per_group
        self.query_key_dim = query_key_dim
        self.similarity = similarity
        self.scale = default_scale(similarity, query_key_dim) if scale is None else scale
        self.normalization = normalization
        self.dilation = dilation
        self.dtype = dtype
        self.implementation = implementation

        depth = groups * query_key_dim
        self.query = query_or_key(in_features, depth, dtype=dtype, rngs=rngs)
        self.key = query_or_key(in_features, depth, dtype=dtype, rngs=rngs)
        self.prior = make_prior(
            prior, groups, (kernel_size, kernel_size), prior_hidden, prior_stddev, rngs
        )
        self.output = channel_transformation(in_features, out_features, dtype=dtype, rngs=rngs)

    def geometric_prior(self) -> jax.Array | None:
        """The prior's logits, (G, k, k) float32, or None without a prior."""
        positions = window_positions(self.kernel_size)
        return None if self.prior is None else self.prior(positions, positions)

    def fold_prior(self) -> None:
        """Replaces a prior network by its table, for inference: the outputs stay the same."""
        positions = window_positions(self.kernel_size)
        if self.prior is not None:
            self.prior = fold(self.prior, positions, positions)

    def query_and_key(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(B, H, W, C) -> query (B, Ho, Wo, G, D) and key (B, H, W, G, D)."""
        s = self.strides
        query, key = self.query(x[:, ::s, ::s] if s > 1 else x), self.key(x)
        vector = (-1, self.query_key_dim)
        return query.reshape(*query.shape[:3], *vector), key.reshape(*key.shape[:3], *vector)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, in_features) -> (B, Ho, Wo, out_features)."""
        x = x if self.dtype is None else x.astype(self.dtype)
        query, key = self.query_and_key(x)
        aggregated = local_relation(
            query,
            key,
            x,
            self.geometric_prior(),
            kernel_size=self.kernel_size,
            channels_per_group=self.channels_per_group,
            stride=self.strides,
            dilation=self.dilation,
            similarity=self.similarity,
            scale=self.scale,
            normalization=self.normalization,
            implementation=self.implementation,
        )
        return self.output(aggregated)


def default_scale(similarity: Similarity, query_key_dim: int) -> float:
    """The paper's scale of Phi: 1, or 1 / sqrt(D) for multiplication ("we follow [25]")."""
    return 1 / math.sqrt(query_key_dim) if similarity == "multiplication" else 1.0
