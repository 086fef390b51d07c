"""A channel transformation of images with its batch normalisation and ReLU, in one pass.

The statistics of a linear map follow from the mean and the covariance of its input. An image has 3
channels and the stem's output has 64, at every pixel of the image. So the statistics are taken over
the image, and the output is written once and never read for them; in the backward pass, its
gradient is read once.
"""

from typing import TypeGuard

import jax
import jax.numpy as jnp

from lrnet_jax.layers.batch_norm import BatchNorm
from lrnet_jax.layers.channel_transformation import ChannelTransformation
from lrnet_jax.layers.isolation import computed_once
from lrnet_jax.layers.kept import keep

MAX_CHANNELS = 4


def is_input(layer: object, norm: BatchNorm) -> TypeGuard[ChannelTransformation]:
    """Whether `transform_input` can stand for relu(norm(layer(x))): in training, for images."""
    return (
        isinstance(layer, ChannelTransformation)
        and layer.in_features <= MAX_CHANNELS
        and layer.bias is None
        and layer.strides == 1
        and not norm.use_running_average
    )


def transform_input(layer: ChannelTransformation, norm: BatchNorm, x: jax.Array) -> jax.Array:
    """relu(norm(layer(x))) of (B, H, W, I) -> (B, H, W, C); it also moves the running averages.

    Raises:
      ValueError: the batch is not a multiple of the norm's `group_images`.
    """
    rows = norm.to_groups(x)
    kernel = layer.kernel[...].astype(jnp.float32)
    mean_x, covariance = map(keep, _moments(rows, norm.axis_name))
    mean = _exact("ni,ic->nc", mean_x, kernel)
    # Rounding may leave a constant channel a variance just below zero.
    var = jnp.maximum(_exact("ic,nij,jc->nc", kernel, covariance, kernel), 0)
    norm.move_averages(mean, var)
    gain = norm.scale[...] * jax.lax.rsqrt(var + norm.epsilon)
    # About the mean of the image: sums of products with the gradient do not cancel then.
    y = _rectified_map(rows, mean_x, kernel * gain[:, None], norm.bias[...])
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _exact(subscripts: str, *arrays: jax.Array) -> jax.Array:
    """An einsum of tiny arrays, whose precision decides about whole channels."""
    return jnp.einsum(subscripts, *arrays, precision="highest")


def _moments(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Mean (N, I) and covariance (N, I, I) of (N, R, W, I), float32.

    In two passes, because the second is over few channels and cancels nothing.
    """
    count = x.shape[1] * x.shape[2]
    wide = x.astype(jnp.float32)

    def mean_of(product: jax.Array) -> jax.Array:
        mean = jnp.sum(jnp.sum(product, 2), 1) / count
        return mean if axis_name is None else jax.lax.pmean(mean, axis_name)

    mean = mean_of(wide)
    centred = wide - mean[:, None, None]
    channels = [centred[..., i] for i in range(x.shape[-1])]
    products = {
        (i, j): mean_of(a * b)
        for i, a in enumerate(channels)
        for j, b in enumerate(channels[: i + 1])
    }
    rows = [
        jnp.stack([products[max(i, j), min(i, j)] for j in range(len(channels))], -1)
        for i in range(len(channels))
    ]
    return mean, jnp.stack(rows, -2)


@jax.custom_vjp
def _rectified_map(x: jax.Array, mean: jax.Array, weights: jax.Array, bias: jax.Array) -> jax.Array:
    """relu((x - mean) @ weights + bias) per group, computed in float32.

    Args:
      x: (N, R, W, I), any float dtype.
      mean: (N, I) float32.
      weights: (N, I, C) float32.
      bias: (C,) float32.

    Returns:
      (N, R, W, C) in the dtype of x.
    """
    return computed_once(_rectified)(x, mean, weights, bias)


def _rectified(x: jax.Array, mean: jax.Array, weights: jax.Array, bias: jax.Array) -> jax.Array:
    return jnp.maximum(_linear(x, mean, weights, bias), 0).astype(x.dtype)


def _linear(x: jax.Array, mean: jax.Array, weights: jax.Array, bias: jax.Array) -> jax.Array:
    """As multiply-adds of few channels, which fuse with what follows."""
    centred, total = x.astype(jnp.float32) - mean[:, None, None], bias
    for i in range(x.shape[-1]):
        total = total + centred[..., i : i + 1] * weights[:, None, None, i]
    return total


_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _forward(
    x: jax.Array, mean: jax.Array, weights: jax.Array, bias: jax.Array
) -> tuple[jax.Array, _Residuals]:
    return _rectified_map(x, mean, weights, bias), (x, mean, weights, bias)


def _backward(residuals: _Residuals, d_y: jax.Array) -> _Residuals:
    # Otherwise XLA:GPU keeps the sign that the forward pass computed.
    x, mean, weights, bias = jax.lax.optimization_barrier(residuals)
    z = _linear(x, mean, weights, bias)
    g = jnp.where(z > 0, d_y.astype(jnp.float32), 0)
    centred = x.astype(jnp.float32) - mean[:, None, None]

    def total(product: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sum(product, 2), 1)

    along_bias = total(g)  # (N, C)
    along_x = [total(g * centred[..., i : i + 1]) for i in range(x.shape[-1])]
    # Only adversarial training asks for the gradient of the image. Elsewhere XLA drops it.
    d_x = jnp.stack([jnp.sum(g * weights[:, None, None, i], -1) for i in range(x.shape[-1])], -1)
    d_mean = -_exact("nic,nc->ni", weights, along_bias)
    return d_x.astype(x.dtype), d_mean, jnp.stack(along_x, 1), jnp.sum(along_bias, 0)


_rectified_map.defvjp(_forward, _backward)
