"""The local relation layer, a drop-in for a k x k convolution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lrnet_jax.checks import check_odd, check_positive
from lrnet_jax.layers.channel_transformation import (
    NO_PADDING,
    Multiples,
    Product,
    apply_jointly,
)
from lrnet_jax.layers.geometric_prior import Prior, window_positions
from lrnet_jax.layers.kept import keep
from lrnet_jax.layers.relation import Relation
from pallas_kernels import local_relation
from pallas_kernels.pallas.stem import Maps
from pallas_kernels.spec import Normalization, Similarity, Spec
from pallas_kernels.validation import make_spec


class LocalRelation(Relation):
    """Aggregates each pixel's k x k neighbourhood with weights from appearance and geometry.

    With q = CT(x at the output pixels), k = CT(x) and g = c // channels_per_group:

        w[p, :, g] = softmax over taps t of ( scale * Phi(q[p, g], k[p + t, g]) + prior[g, t] )
        y[p]       = CT( sum over t of  w[p, t, g] * x[p + t] )

    The value is x itself, and the prior is all that is learnt per tap. Stride and borders are
    those of a convolution: output (i, j) is centred on input (i * strides, j * strides), and taps
    outside the image do not take part.

        nnx.Conv(64, 128, (7, 7), strides=2, padding=3, use_bias=False, rngs=rngs)
        LocalRelation(64, 128, kernel_size=7, strides=2, rngs=rngs)

    Args:
      in_features: C of the input.
      out_features: C of the output.
      kernel_size: k, odd.
      strides: s >= 1; Ho = (H - 1) // s + 1.
      channels_per_group: the paper's m, how many channels share one weight; G = ceil(C / m).
      query_key_dim: D, the length of a query or key vector.
      similarity: "squared_difference", "absolute_difference" or "multiplication" (Eqns. 3 to 5).
      scale: multiplies Phi. None is the paper's: 1, or 1 / sqrt(D) for multiplication.
      normalization: "softmax" over the taps or "none".
      prior: "network" (a small network of the relative position), "table" (a learnt logit for
        each tap, the paper's G*) or "none".
      prior_hidden: hidden width of the prior network, None for G.
      prior_stddev: standard deviation of the prior network's initial output weights.
      dilation: distance between taps in input pixels.
      dtype: of activations, None for that of input and parameters together. Parameters are
        float32, and so are similarity, softmax and sums.
      implementation: of `pallas_kernels.local_relation`, None for the fastest that runs.
      rngs: the source of the initial weights.

    Raises:
      TypeError: a size, stride or dilation is not an int.
      ValueError: kernel_size is even, a number is less than 1, or there is no such prior.

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
        check_positive("dilation", dilation)
        super().__init__(
            in_features,
            out_features,
            strides,
            (kernel_size, kernel_size),
            channels_per_group=channels_per_group,
            query_key_dim=query_key_dim,
            similarity=similarity,
            scale=scale,
            normalization=normalization,
            prior=prior,
            prior_hidden=prior_hidden,
            prior_stddev=prior_stddev,
            dtype=dtype,
            rngs=rngs,
        )
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.implementation = implementation

    @property
    def spec(self) -> Spec:
        """The options of the operator."""
        return make_spec(
            self.kernel_size,
            self.channels_per_group,
            self.strides,
            self.dilation,
            self.similarity,
            self.scale,
            self.normalization,
        )

    def prior_positions(self) -> tuple[np.ndarray, np.ndarray]:
        """The relative positions of the window's taps on both axes, (k,) float32 each."""
        positions = window_positions(self.kernel_size)
        return positions, positions

    def geometric_prior(self) -> jax.Array | None:
        """The prior's logits, (G, k, k) float32, or None without a prior."""
        return None if self.prior is None else keep(self.prior(*self.prior_positions()))

    def query_and_key(self, x: jax.Array, input_multiple: int = 1) -> tuple[jax.Array, jax.Array]:
        """(B, H, W, C) -> query (B, Ho, Wo, G, D) and key (B, H, W, G, D)."""
        if self.strides == 1:
            query, key = apply_jointly(x, self.query, self.key, input_multiple)
        else:
            multiples = Multiples(input_multiple)
            query = self.query(x, multiples=multiples)
            key = self.key(x, multiples=multiples)
        return self._to_vectors(keep(query)), self._to_vectors(keep(key))

    def of_maps(
        self, maps: Maps, *, multiples: Multiples = NO_PADDING, product: Product | None = None
    ) -> jax.Array:
        """As `__call__`, of values, keys and queries that were computed together."""
        query, key = self._to_vectors(maps.query), self._to_vectors(maps.key)
        aggregated = self.aggregate(query, key, maps.value)
        return self.output(aggregated, multiples=multiples, product=product)

    def __call__(
        self, x: jax.Array, *, multiples: Multiples = NO_PADDING, product: Product | None = None
    ) -> jax.Array:
        """(B, H, W, in_features) -> (B, Ho, Wo, out_features).

        `multiples` fill both up by zeros, within the last group of the input. `product` is that of
        the last transformation, as a `ChannelTransformation` takes it.

        Raises:
          ValueError: x has another shape.
        """
        spare = -self.in_features % multiples.input
        if x.ndim != 4 or x.shape[-1] != self.in_features + spare:
            raise ValueError(
                f"x must be (B, H, W, {self.in_features}), got {x.shape}; "
                "in_features is the number of channels of the input"
            )
        x = x if self.dtype is None else x.astype(self.dtype)
        aggregated = self.aggregate(*self.query_and_key(x, multiples.input), x)
        return self.output(aggregated, multiples=multiples, product=product)

    def aggregate(self, query: jax.Array, key: jax.Array, x: jax.Array) -> jax.Array:
        """(B, Ho, Wo, C) before the last transformation, of query, key and the values x."""
        options = dataclasses.asdict(self.spec)
        prior = self.geometric_prior()
        return local_relation(query, key, x, prior, **options, implementation=self.implementation)
