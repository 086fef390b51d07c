"""What one local relation computes, as plain data shared by every implementation."""

import dataclasses
import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

Similarity = Literal["squared_difference", "absolute_difference", "multiplication"]
Normalization = Literal["softmax", "none"]

SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)


class Inputs(NamedTuple):
    """The arrays of one local relation.

    Attributes:
      query: (B, Ho, Wo, G, D).
      key: (B, H, W, G, D).
      value: (B, H, W, C).
      prior: (G, Kh, Kw), or None.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    prior: jax.Array | None = None


class Normalizer(NamedTuple):
    """What a softmax divides by: weight = exp(logit - shift) * factor.

    The logarithm of the sum alone would not do: next to a logit of 1e6 the last bit of its float32
    is worth 6 % of a weight.

    Attributes:
      shift: (B, Ho, Wo, G), float32 or the compute dtype.
      factor: likewise.
    """

    shift: jax.Array
    factor: jax.Array


class Residuals(NamedTuple):
    """What the backward pass needs. Weights are computed again from it.

    Saving the weights would cost Kh * Kw / 2 times as much memory.

    Attributes:
      inputs: of the forward pass.
      out: (B, Ho, Wo, C), its output.
      normalizer: None without softmax.
    """

    inputs: Inputs
    out: jax.Array
    normalizer: Normalizer | None


@dataclasses.dataclass(frozen=True)
class Spec:
    """The static part of a local relation; hashable, so that it can key a jit cache.

    Attributes:
      kernel_size: (Kh, Kw), both odd. Tap (a, b) looks at offset
        (dilation * (a - Kh // 2), dilation * (b - Kw // 2)): row-major, no flip.
      channels_per_group: M, how many value channels share one weight; the last group may be
        partial.
      stride: output pixel (i, j) is centred on input pixel (i * stride, j * stride).
      dilation: distance between neighbouring taps, in input pixels.
      similarity: Phi of Eqns. 3 to 5.
      scale: multiplies Phi, not the prior.
      normalization: softmax over the taps inside the image, or the raw logits as weights.
    """

    kernel_size: tuple[int, int]
    channels_per_group: int
    stride: int = 1
    dilation: int = 1
    similarity: Similarity = "squared_difference"
    scale: float = 1.0
    normalization: Normalization = "softmax"

    @property
    def taps(self) -> int:
        """K*K, the number of taps of a window."""
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def padding(self) -> tuple[int, int]:
        """How far a window reaches beyond its centre, in input pixels, per axis."""
        kh, kw = self.kernel_size
        return self.dilation * (kh // 2), self.dilation * (kw // 2)

    def groups(self, channels: int) -> int:
        """G = ceil(C / M)."""
        return -(-channels // self.channels_per_group)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(Ho, Wo) of an (H, W) input."""
        return (height - 1) // self.stride + 1, (width - 1) // self.stride + 1

    def component(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """One summand of Phi, Eqns. 3 to 5 for scalars, elementwise and unscaled.

        (q - k)^2 is never expanded: q^2 - 2qk + k^2 loses the digits that the softmax lives on.
        """
        if self.similarity == "squared_difference":
            return -((query - key) ** 2)
        if self.similarity == "absolute_difference":
            return -jnp.abs(query - key)
        return query * key

    def phi(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """The scaled similarity: scale * Phi of Eqns. 3 to 5, summed over the last axis (D)."""
        phi = self.component(query, key)
        # A sum over one element is a reduction that XLA does not always remove.
        total = phi[..., 0] if phi.shape[-1] == 1 else jnp.sum(phi, axis=-1)
        return total if self.scale == 1.0 else total * self.scale


def compute_dtype(*arrays: jax.Array | None) -> jnp.dtype:
    """The dtype of similarity, softmax and accumulation: float32, or float64 if an input is."""
    dtypes = [array.dtype for array in arrays if array is not None]
    return functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))
