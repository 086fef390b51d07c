"""Channel transformations (CT, the paper's name for 1x1 convolutions) and initial weights."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lrnet_jax.layers.kept import keep
from lrnet_jax.layers.matrix_products import dot_general, product


class Multiples(NamedTuple):
    """Numbers of channels that are filled up by zeros, to multiples of these.

    cuBLAS needs multiples of 8 of 16-bit numbers, and XLA copies other arrays into padded ones at
    every product. Weights are small: with padded weights, activations are padded from the start.

    Attributes:
      input: of the input, 1 without padding.
      output: of the output.
    """

    input: int = 1
    output: int = 1

    def padded(self, x: jax.Array) -> jax.Array:
        """(in_features, out_features) with zeros."""
        spare = [(0, -n % multiple) for n, multiple in zip(x.shape, self, strict=True)]
        return jnp.pad(x, spare) if any(after for _, after in spare) else x


NO_PADDING = Multiples()

# Of pixels (B, Ho, Wo, in_features) and a kernel (in_features, out_features).
Product = Callable[[jax.Array, jax.Array], jax.Array]


class ChannelTransformation(nnx.Linear):
    """A linear map of the channels, the same at every pixel, as a 1x1 convolution is.

    It is a matrix product, because XLA:CPU takes at least twice as long for a 1x1 convolution and
    its gradient.

    Args:
      in_features: C of the input.
      out_features: C of the output.
      strides: s >= 1; output pixel (i, j) is computed from input pixel (i * s, j * s).
      use_bias: False wherever batch normalisation follows, which would cancel a bias.
      variance: initial weights are drawn from N(0, variance / in_features); 2 is the choice of
        He et al. (2015).
      dtype: of the computation, None for that of input and parameters together. Parameters are
        float32.
      rngs: the source of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        strides: int = 1,
        use_bias: bool = False,
        variance: float = 2.0,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            use_bias=use_bias,
            dtype=dtype,
            kernel_init=functools.partial(fan_in_normal, variance=variance),
            bias_init=zeros,
            dot_general=dot_general,
            rngs=rngs,
        )
        self.strides = strides

    def __call__(
        self,
        inputs: jax.Array,
        out_sharding: jax.sharding.PartitionSpec | None = None,
        *,
        multiples: Multiples = NO_PADDING,
        product: Product | None = None,
    ) -> jax.Array:
        """(B, H, W, in_features) -> (B, Ho, Wo, out_features).

        Without strides the input may be (..., in_features). `out_sharding` is that of nnx.Linear.
        `multiples` fill both up by zeros; such a layer has no bias. `product` computes the output
        from the pixels and the kernel, in place of all else.
        """
        s = self.strides
        x = keep(inputs[:, ::s, ::s]) if s > 1 else inputs
        if product is not None:
            return product(x, self.kernel[...])
        # Pixels become the rows of a matrix: with more axes the gradient is slower on a CPU.
        if multiples != NO_PADDING:
            x, kernel = nnx.nn.dtypes.promote_dtype((x, self.kernel[...]), dtype=self.dtype)
            rows = jnp.dot(x.reshape(-1, x.shape[-1]), multiples.padded(kernel))
            return rows.reshape(*x.shape[:-1], -1)
        rows = super().__call__(x.reshape(-1, self.in_features), out_sharding=out_sharding)
        return rows.reshape(*x.shape[:-1], self.out_features)


def apply_jointly(
    x: jax.Array,
    first: ChannelTransformation,
    second: ChannelTransformation,
    input_multiple: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """The outputs of two channel transformations of x, by one matrix product that reads x once.

    Args:
      x: (B, H, W, in_features).
      first: without bias and without strides.
      second: the same, of the same dtype.
      input_multiple: in_features is filled up by zeros to a multiple of it.
    """
    x, *kernels = nnx.nn.dtypes.promote_dtype(
        (x, first.kernel[...], second.kernel[...]), dtype=first.dtype
    )
    rows = x.reshape(-1, x.shape[-1])
    multiples = Multiples(input_multiple, 8 if x.dtype.itemsize == 2 else 1)
    kernel = multiples.padded(jnp.concatenate(kernels, 1))
    both = product(rows, kernel).reshape(*x.shape[:-1], -1)
    end = first.out_features + second.out_features
    return both[..., : first.out_features], both[..., first.out_features : end]


def query_or_key(
    in_features: int,
    out_features: int,
    *,
    strides: int = 1,
    dtype: jnp.dtype | None = None,
    rngs: nnx.Rngs,
) -> ChannelTransformation:
    """A channel transformation to queries or keys, whose initial weights are small.

    The paper does not state these weights. With He's weights the squared differences start at
    2 D on average and spread as widely, and the gradient doubles from block to block: its norm is
    5e7 in a new LR-Net-50, where a ResNet-50 has 2e2. With weights up to half as large, or up to a
    third for D = 16, the norm stays at 3e2.
    """
    return ChannelTransformation(
        in_features, out_features, strides=strides, variance=0.1, dtype=dtype, rngs=rngs
    )


def fan_in_normal(
    key: jax.Array,
    shape: Sequence[int],
    dtype: DTypeLike = jnp.float32,
    *,
    variance: float = 2.0,
) -> jax.Array:
    """Draws from N(0, variance / fan_in) for a kernel whose last axis is the output features."""
    return normal(key, shape, dtype, stddev=math.sqrt(variance / math.prod(shape[:-1])))


def normal(
    key: jax.Array,
    shape: Sequence[int],
    dtype: DTypeLike = jnp.float32,
    *,
    stddev: float,
) -> jax.Array:
    """Draws from N(0, stddev^2)."""
    return _draw(jax.random.normal, key, shape, dtype, stddev)


def uniform(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draws from U(-1, 1)."""
    return _draw(functools.partial(jax.random.uniform, minval=-1.0), key, shape, dtype, 1.0)


def zeros(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Zeros for a bias. XLA would compile jnp.zeros for every shape."""
    del key
    return jax.device_put(np.zeros(shape, dtype))


def _draw(
    sampler: Callable[..., jax.Array],
    key: jax.Array,
    shape: Sequence[int],
    dtype: DTypeLike,
    factor: float,
) -> jax.Array:
    """Draws 4096 * 4^n numbers, with the least n that suffices, and keeps the first of them.

    XLA compiles a program for every number of draws, and a new network spends most of its time in
    the compiler. LR-Net-50 has 60 shapes of weights but six such numbers. On a CPU with an empty
    compilation cache it is built in 5 s of processor time. Draws of the exact shapes take 23 s.
    One jit around the constructor takes 22 s with these numbers and 39 s with the exact shapes;
    it also rounds the weights differently, unless a barrier keeps the factor apart (42 s).
    """
    count = math.prod(shape)
    size = 4096
    while size < count:
        size *= 4
    draws = sampler(key, (size,), dtype)
    if isinstance(draws, jax.core.Tracer):  # within jit or eval_shape
        return (draws[:count] * factor).reshape(shape)
    # In numpy, because XLA would compile the three operations above for every shape.
    kept = np.asarray(draws)[:count] * np.asarray(factor, draws.dtype)
    return jax.device_put(kept.reshape(shape))
