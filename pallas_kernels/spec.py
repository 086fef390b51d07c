"""What one local relation computes, as plain data, and the face of every implementation."""

import dataclasses
import functools
from typing import Literal, NamedTuple, Protocol, get_args

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
    """What turns logits into softmax weights: weight = exp(logit - shift) * factor.

    The logarithm of the sum alone is not precise enough. Next to a logit of 1e6 the last bit of
    its float32 is worth 6 % of a weight.

    Attributes:
      shift: (B, Ho, Wo, G) in the compute dtype.
      factor: (B, Ho, Wo, G) in the compute dtype.
    """

    shift: jax.Array
    factor: jax.Array


class Residuals(NamedTuple):
    """What the backward pass needs. It computes the weights again from this.

    Saving the weights would cost Kh * Kw / 2 times as much memory.

    Attributes:
      inputs: the inputs of the forward pass.
      out: (B, Ho, Wo, C), the output of the forward pass.
      normalizer: the normaliser of the forward pass; None without softmax.
    """

    inputs: Inputs
    out: jax.Array
    normalizer: Normalizer | None


@dataclasses.dataclass(frozen=True)
class Spec:
    """The static part of a local relation; hashable, so that it can key a jit cache.

    Attributes:
      kernel_size: (Kh, Kw), both odd. Tap (a, b) reads the input at the offset
        (dilation * (a - Kh // 2), dilation * (b - Kw // 2)). Taps are row-major and not flipped.
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
        return strided_size(height, self.stride), strided_size(width, self.stride)

    def component(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """One summand of Phi, Eqns. 3 to 5 for scalars, elementwise and unscaled.

        (q - k)^2 is never expanded. q^2 - 2qk + k^2 cancels, and loses digits of the logit.
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


def strided_size(size: int, stride: int) -> int:
    """Length of an output axis whose pixel i is centred on input pixel i * stride."""
    return (size - 1) // stride + 1


def compute_dtype(*arrays: jax.Array | None) -> jnp.dtype:
    """The dtype of similarity, softmax and accumulation: float32, or float64 if an input is."""
    dtypes = [array.dtype for array in arrays if array is not None]
    return functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))


def forward_shapes(spec: Spec, inputs: Inputs) -> tuple[jax.Array, Normalizer | None]:
    """Zeros of the shapes and dtypes of an implementation's `forward`."""
    pixels, channels = inputs.query.shape[:3], inputs.value.shape[-1]
    out = jnp.zeros((*pixels, channels), inputs.value.dtype)
    if spec.normalization == "none":
        return out, None
    number = jnp.zeros(inputs.query.shape[:4], compute_dtype(*inputs))
    return out, Normalizer(number, number)


def backward_shapes(spec: Spec, residuals: Residuals, d_out: jax.Array) -> Inputs:
    """Zeros of the shapes and dtypes of an implementation's `backward`."""
    del spec, d_out
    return jax.tree.map(jnp.zeros_like, residuals.inputs)


class Implementation(Protocol):
    """The face of an implementation: a module with these four functions and a description."""

    DESCRIPTION: str
    """What it is and where it runs, in half a sentence."""

    def unsupported(self, spec: Spec, inputs: Inputs) -> str | None:
        """Returns why no machine can run this problem with it, and the mend; None if one can.

        The inputs may be `jax.ShapeDtypeStruct`s.
        """

    def unavailable(self) -> str | None:
        """Returns why this machine cannot run it, and the mend; None if it can."""

    def forward(self, spec: Spec, inputs: Inputs) -> tuple[jax.Array, Normalizer | None]:
        """Returns the output (B, Ho, Wo, C) in value.dtype, and the normaliser with softmax."""
        ...

    def backward(self, spec: Spec, residuals: Residuals, d_out: jax.Array) -> Inputs:
        """Returns the gradients of the inputs, each in the shape and dtype of its array."""
        ...
