"""Channel transformations (CT, the paper's name for 1x1 convolutions) and how weights start."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def channel_transformation(
    in_features: int,
    out_features: int,
    *,
    use_bias: bool = False,
    variance: float = 2.0,
    dtype: jnp.dtype | None = None,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A linear map of the channels, the same at every pixel: (..., in) -> (..., out).

    A matrix product rather than a convolution: XLA:CPU runs it, forwards and backwards together,
    in half the time or less.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      use_bias: off wherever batch normalisation follows, which would cancel a bias.
      variance: weights start as N(0, variance / in_features); 2 is that of He et al. (2015).
      dtype: of the computation; parameters are float32.
      rngs: where the initial weights come from.
    """
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=functools.partial(fan_in_normal, variance=variance),
        bias_init=zeros,
        dot_general=_flat_dot,
        rngs=rngs,
    )


def _flat_dot(x: jax.Array, kernel: jax.Array, axes: object, **options: Any) -> jax.Array:
    """Multiplies with pixels as rows: with more axes the gradient is slower on a CPU."""
    del axes  # always the last of x and the first of the kernel
    rows = x.reshape(-1, x.shape[-1])
    product = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options)
    return product.reshape(*x.shape[:-1], -1)


def query_or_key(
    in_features: int, out_features: int, *, dtype: jnp.dtype | None = None, rngs: nnx.Rngs
) -> nnx.Linear:
    """A channel transformation to queries or keys, which start small.

    The paper is silent. From He's weights a squared difference starts at 2 D with a spread as
    large, and the gradient doubles from block to block: of norm 5e7 in a new LR-Net-50, where a
    ResNet-50 has 2e2. From weights up to half as large, for D = 16 up to a third, it stays at 3e2.
    """
    return channel_transformation(in_features, out_features, variance=0.1, dtype=dtype, rngs=rngs)


def fan_in_normal(
    key: jax.Array,
    shape: Sequence[int],
    dtype: jnp.dtype = jnp.float32,
    *,
    variance: float = 2.0,
) -> jax.Array:
    """N(0, variance / fan_in) for a kernel whose last axis is the output features."""
    return normal(key, shape, dtype, stddev=math.sqrt(variance / math.prod(shape[:-1])))


def normal(
    key: jax.Array,
    shape: Sequence[int],
    dtype: jnp.dtype = jnp.float32,
    *,
    stddev: float,
) -> jax.Array:
    """N(0, stddev^2)."""
    return _draw(jax.random.normal, key, shape, dtype, stddev)


def uniform(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """U(-1, 1)."""
    return _draw(functools.partial(jax.random.uniform, minval=-1.0), key, shape, dtype, 1.0)


def zeros(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Zeros for a bias; jnp.zeros would be compiled for every shape."""
    del key
    return jax.device_put(np.zeros(shape, dtype))


def _draw(
    sampler: Callable[..., jax.Array],
    key: jax.Array,
    shape: Sequence[int],
    dtype: jnp.dtype,
    factor: float,
) -> jax.Array:
    """Draws 4^n >= 4096 numbers and drops those that are too many.

    XLA compiles a program for every size drawn, and compiling is nearly all that making a network
    costs: LR-Net-50 has 60 shapes of weights, but six such sizes.
    """
    count = math.prod(shape)
    size = 4096
    while size < count:
        size *= 4
    draws = sampler(key, (size,), dtype)
    if isinstance(draws, jax.core.Tracer):  # within jit or eval_shape
        return (draws[:count] * factor).reshape(shape)
    # numpy, because the three operations above would each be compiled for every shape.
    kept = np.asarray(draws)[:count] * np.asarray(factor, draws.dtype)
    return jax.device_put(kept.reshape(shape))
