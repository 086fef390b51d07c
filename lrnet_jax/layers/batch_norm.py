"""Batch normalisation over a device's images, over groups of them, or over all devices."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lrnet_jax.layers.channel_means import affine, channel_means, to_pixels, widened
from lrnet_jax.layers.isolation import computed_once
from lrnet_jax.layers.kept import keep


class BatchNorm(nnx.Module):
    """y = scale * (x - mean) / sqrt(variance + epsilon) + bias, per channel.

    In training, mean and (biased) variance are those of the batch, by default of all images of the
    device. The paper trains with 64 images per GPU and without synchronisation. With `group_images`
    the statistics are those of consecutive groups of that many images, so that the paper's 64 do
    not depend on the number of devices ("ghost batch norm"). With `axis_name` they are those of
    all devices. In evaluation they are the running averages.

    Args:
      features: C.
      scale_init: initial scale. With 0 a residual branch starts as the identity.
      group_images: number of images that share statistics, None for all images of the device. The
        running averages move by the mean of the groups' statistics.
      axis_name: a pmap or shard_map axis over which statistics are taken. It excludes
        `group_images`.
      momentum: of the running averages: new = momentum * old + (1 - momentum) * batch.
      epsilon: added to the variance.
      dtype: of the output, None for that of the input. Statistics are always float32.

    Raises:
      ValueError: group_images is less than 1, or axis_name is given as well.

    Source: Section 5 of the paper leaves this to its references. Momentum and epsilon are those
    of the ResNet recipes that it follows.
    """

    def __init__(
        self,
        features: int,
        *,
        scale_init: float = 1.0,
        group_images: int | None = None,
        axis_name: str | None = None,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        dtype: jnp.dtype | None = None,
    ) -> None:
        if group_images is not None and group_images < 1:
            raise ValueError(
                f"group_images must be at least 1, got {group_images}; "
                "use None for all images of the device"
            )
        if group_images is not None and axis_name is not None:
            raise ValueError(
                f"group_images={group_images} and axis_name={axis_name!r} exclude each other; "
                "set one of them to None"
            )
        # In numpy, because XLA would compile jnp.full for every size.
        self.scale = nnx.Param(jax.device_put(np.full(features, scale_init, np.float32)))
        self.bias = nnx.Param(jax.device_put(np.zeros(features, np.float32)))
        self.mean = nnx.BatchStat(jax.device_put(np.zeros(features, np.float32)))
        self.var = nnx.BatchStat(jax.device_put(np.ones(features, np.float32)))
        self.group_images = group_images
        self.axis_name = axis_name
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.use_running_average = False  # set by train() and eval() of nnx.Module

    def __call__(self, x: jax.Array, *, relu: bool = False, multiple: int = 1) -> jax.Array:
        """Normalises (B, ..., C). In training it also updates the running averages.

        Args:
          x: (B, ..., C).
          relu: whether a ReLU follows. In one rule with it, the backward pass keeps no mask and
            reads no array more often than that of the normalisation alone.
          multiple: C is filled up by zeros to a multiple of it, which stay zeros.

        Raises:
          ValueError: the batch is not a multiple of `group_images`.
        """
        dtype = self.dtype or x.dtype
        channels = self.scale.shape[0]
        if self.use_running_average:
            gain, offset = self.gain_and_offset(multiple)
            return (affine_relu if relu else affine)(jnp.dtype(dtype), x, gain, offset)

        scale, bias, average_mean, _ = self.filled_up(multiple)
        options = _Options(self.epsilon, self.axis_name, relu)
        y, mean, var = _normalize(options, self.to_groups(x), scale, bias, average_mean)
        self.move_averages(mean[:, :channels], var[:, :channels])
        return y.reshape(x.shape).astype(dtype)

    def gain_and_offset(self, multiple: int = 1) -> tuple[jax.Array, jax.Array]:
        """What evaluation computes, x * gain + offset, of channels filled up to a multiple."""
        scale, bias, mean, var = self.filled_up(multiple)
        gain = scale * jax.lax.rsqrt(var + self.epsilon)
        return gain, bias - mean * gain

    def filled_up(self, multiple: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Scale, bias, mean and variance, filled up by zeros to a multiple of channels."""
        spare = -self.scale.shape[0] % multiple
        variables = self.scale, self.bias, self.mean, self.var
        scale, bias, mean, var = (
            jnp.pad(v[...], (0, spare)) if spare else v[...] for v in variables
        )
        return scale, bias, mean, var

    def to_groups(self, x: jax.Array) -> jax.Array:
        """(B, ..., C) -> (N, R, W, C), of N groups of images that share statistics.

        Raises:
          ValueError: the batch is not a multiple of `group_images`.
        """
        images = self.group_images or x.shape[0]
        if x.shape[0] % images:
            raise ValueError(
                f"a batch of {x.shape[0]} images (per device) is not a multiple of "
                f"group_images {images}; change one of them"
            )
        width = x.shape[-2] if x.ndim > 2 else 1
        return x.reshape(x.shape[0] // images, -1, width, x.shape[-1])

    def move_averages(self, mean: jax.Array, var: jax.Array) -> None:
        """Moves the running averages towards the statistics of a batch, (N, C) each."""
        for average, batch in ((self.mean, mean), (self.var, var)):
            batch = jax.lax.stop_gradient(jnp.mean(batch, 0))
            average[...] = self.momentum * average[...] + (1 - self.momentum) * batch


def _rectified(dtype: DTypeLike, x: jax.Array, gain: jax.Array, offset: jax.Array) -> jax.Array:
    return jnp.maximum(affine(dtype, x, gain, offset), 0.0)  # see `relu`


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def affine_relu(dtype: jnp.dtype, x: jax.Array, gain: jax.Array, offset: jax.Array) -> jax.Array:
    """relu(x * gain + offset)."""
    return computed_once(_rectified, dtype)(x, gain, offset)


@affine_relu.defjvp
def _affine_relu_jvp(
    dtype: jnp.dtype, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    (x, gain, _), (d_x, d_gain, d_offset) = primals, tangents
    y = affine_relu(dtype, *primals)
    tangent = (d_x * gain + x * d_gain + d_offset).astype(dtype)
    return y, jnp.where(y == 0, 0, tangent)


class _Options(NamedTuple):
    """How `_normalize` normalises.

    Attributes:
      epsilon: added to the variance.
      axis_name: a mapped axis over which statistics are taken, or None.
      relu: whether a ReLU follows.
    """

    epsilon: float
    axis_name: str | None
    relu: bool


_Outputs = tuple[jax.Array, jax.Array, jax.Array]  # y, mean, variance
# x, scale, bias, mean, 1 / deviation
_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(
    options: _Options, x: jax.Array, scale: jax.Array, bias: jax.Array, pivot: jax.Array
) -> _Outputs:
    """Normalises N groups of pixels by the statistics of each group.

    Its backward pass is written by hand and reads the activations fewer times than the derived one:
    forward, x is read twice and y written once; backward, x and dy are read twice and dx is written
    once. The statistics only serve running averages, so that no gradient flows through them.

    Args:
      options: epsilon, axis and ReLU.
      x: (N, R, W, C), any float dtype.
      scale: (C,) float32.
      bias: (C,) float32.
      pivot: (C,) float32, near the mean of each channel.

    Returns:
      y like x, mean (N, C) and variance (N, C) float32.
    """
    return _normalize_forward(options, x, scale, bias, pivot)[0]


def _normalize_forward(
    options: _Options, x: jax.Array, scale: jax.Array, bias: jax.Array, pivot: jax.Array
) -> tuple[_Outputs, _Residuals]:
    mean, var, inverse_deviation = statistics(x, pivot, options.epsilon, options.axis_name)
    gain = scale * inverse_deviation
    # Without a ReLU a sum follows, and XLA computes both at once.
    output = computed_once(_rectified, x.dtype) if options.relu else partial(affine, x.dtype)
    y = output(x, to_pixels(gain), to_pixels(bias - mean * gain))
    return (y, mean, var), (x, scale, bias, mean, inverse_deviation)


def _normalize_backward(
    options: _Options, residuals: _Residuals, cotangents: _Outputs
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x, scale, bias, mean, inverse_deviation = residuals
    gain = scale * inverse_deviation
    offset = bias - mean * gain
    if options.relu:
        # Otherwise XLA:GPU finds that the forward pass computed the same, and keeps that.
        x, gain, offset = jax.lax.optimization_barrier((x, gain, offset))

    dy = cotangents[0]
    means = channel_means("products", options.relu, x, dy, gain, offset)
    count, axis_name = x.shape[1] * x.shape[2], options.axis_name
    d_scale, d_bias, slope, constant = terms(
        means, count, scale, mean, inverse_deviation, axis_name
    )
    if options.relu:
        # Masked again. Otherwise XLA:GPU writes the masked dy to memory and reads it back.
        x, dy, slope, constant = jax.lax.optimization_barrier((x, dy, slope, constant))
    wide, masked = widened(options.relu, x, dy, gain, offset)
    dx = masked * to_pixels(gain) + (wide * to_pixels(slope) - to_pixels(constant))
    return dx.astype(x.dtype), d_scale, d_bias, jnp.zeros_like(scale)


_normalize.defvjp(_normalize_forward, _normalize_backward)


def statistics(
    x: jax.Array, pivot: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean, variance and 1 / deviation of (N, R, W, C), (N, C) float32 each.

    Squares are taken about the pivot (C,), the running mean. About zero they cancel badly where the
    mean of a channel is large against its deviation. About the mean they cost a second pass.
    """
    moments = channel_means("moments", False, x, pivot)
    if axis_name is not None:
        moments = jax.lax.pmean(moments, axis_name)
    mean = pivot + moments[0]
    # Rounding may leave a constant channel a variance just below zero.
    var = jnp.maximum(moments[1] - moments[0] ** 2, 0)
    return keep(mean), var, keep(jax.lax.rsqrt(var + epsilon))


def terms(
    means: tuple[jax.Array, jax.Array],
    count: int,
    scale: jax.Array,
    mean: jax.Array,
    inverse_deviation: jax.Array,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What the gradients of a normalisation are made of.

    Args:
      means: over the pixels, of the gradient dy and of dy * x, (N, C).
      count: number of pixels of a group.
      scale: (C,).
      mean: of x, (N, C).
      inverse_deviation: (N, C).
      axis_name: a mapped axis over which statistics are taken, or None.

    Returns:
      The gradients of scale and bias, (C,), and slope and constant, (N, C), of the gradient of x:
      dx = scale * inverse_deviation * dy + x * slope - constant.
    """
    mean_d_bias = means[0]
    mean_d_scale = (means[1] - mean * mean_d_bias) * inverse_deviation
    d_scale, d_bias = (count * jnp.sum(part, 0) for part in (mean_d_scale, mean_d_bias))
    if axis_name is not None:  # other devices' outputs depend on this one's statistics
        mean_d_bias, mean_d_scale = jax.lax.pmean((mean_d_bias, mean_d_scale), axis_name)
    # dx = gain * (dy - mean_d_bias - mean_d_scale * (x - mean) * inverse_deviation), written as two
    # multiply-adds.
    gain = scale * inverse_deviation
    slope = -gain * inverse_deviation * mean_d_scale
    return d_scale, d_bias, slope, slope * mean + gain * mean_d_bias
