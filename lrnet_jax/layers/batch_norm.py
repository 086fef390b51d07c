"""Batch normalisation over a device's images, over groups of them, or over all devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class BatchNorm(nnx.Module):
    """y = scale * (x - mean) / sqrt(variance + epsilon) + bias, per channel.

    In training the mean and (biased) variance are those of the batch at hand, by default all
    images of the device: the paper trains with 64 images per GPU and no synchronisation. With
    `group_images` they are taken over consecutive groups of that many images, so that the paper's
    64 do not depend on the number of devices ("ghost batch norm"). With `axis_name` they are taken
    over all devices. In evaluation they are the running averages.

    Args:
      features: C.
      scale_init: initial scale; 0 makes a residual branch start as the identity.
      group_images: images that share statistics, None for all images of the device. The running
        averages move by the mean of the groups' statistics.
      axis_name: a pmap or shard_map axis to take statistics over. Not with `group_images`.
      momentum: of the running averages: new = momentum * old + (1 - momentum) * batch.
      epsilon: added to the variance.
      dtype: of the output, None for the input's. Statistics are float32 always.

    Source: Section 5 of the paper leaves this to its references; momentum and epsilon are those
    of the ResNet recipes it follows.
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
        # From numpy: jnp.full is compiled for every size.
        self.scale = nnx.Param(jax.device_put(np.full(features, scale_init, np.float32)))
        self.bias = nnx.Param(jax.device_put(np.zeros(features, np.float32)))
        self.mean = nnx.BatchStat(jax.device_put(np.zeros(features, np.float32)))
        self.var = nnx.BatchStat(jax.device_put(np.ones(features, np.float32)))
        self.group_images = group_images
        self.axis_name = axis_name
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.use_running_average = False  # nnx's train() and eval() set it

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises (B, ..., C); in training also moves the running averages.

        Raises:
          ValueError: the batch cannot be cut into groups of `group_images`.
        """
        dtype = self.dtype or x.dtype
        weights = self.scale[...], self.bias[...]
        if self.use_running_average:
            gain = weights[0] * jax.lax.rsqrt(self.var[...] + self.epsilon)
            return (x * gain + (weights[1] - self.mean[...] * gain)).astype(dtype)

        images = self.group_images or x.shape[0]
        if x.shape[0] % images:
            raise ValueError(
                f"a batch of {x.shape[0]} images (per device) is not a multiple of "
                f"group_images {images}; change one of them"
            )
        width = x.shape[-2] if x.ndim > 2 else 1
        rows = x.reshape(x.shape[0] // images, -1, width, x.shape[-1])
        y, mean, var = _normalize(self.epsilon, self.axis_name, rows, *weights, self.mean[...])
        for average, batch in ((self.mean, mean), (self.var, var)):
            batch = jax.lax.stop_gradient(jnp.mean(batch, 0))
            average[...] = self.momentum * average[...] + (1 - self.momentum) * batch
        return y.reshape(x.shape).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalize(
    epsilon: float,
    axis_name: str | None,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    pivot: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x (N, R, W, C) by the statistics of each of N groups, any float dtype.

    Has a backward pass of its own, which reads the activations fewer times than the derived one.
    The statistics are for running averages: no gradient flows through them.

    Returns:
      y like x, mean (N, C) and variance (N, C) float32.
    """
    y, mean, var, _ = _statistics_and_output(epsilon, axis_name, x, scale, bias, pivot)
    return y, mean, var


_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _normalize_forward(
    epsilon: float,
    axis_name: str | None,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    pivot: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], _Residuals]:
    y, mean, var, rate = _statistics_and_output(epsilon, axis_name, x, scale, bias, pivot)
    return (y, mean, var), (x, scale, mean, rate)


def _statistics_and_output(
    epsilon: float,
    axis_name: str | None,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    pivot: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    wide = x.astype(jnp.float32)
    # Squares are taken about the running mean: about zero they cancel badly where the mean of a
    # channel is large against its deviation, and a second pass, about the mean, costs more.
    centred = wide - pivot
    moments = _mean(centred), _mean(centred * centred)
    if axis_name is not None:
        moments = jax.lax.pmean(moments, axis_name)
    mean = pivot + moments[0]
    # Rounding may leave a constant channel a variance just below zero.
    var = jnp.maximum(moments[1] - moments[0] ** 2, 0)
    rate = jax.lax.rsqrt(var + epsilon)
    gain = scale * rate
    y = wide * _spread(gain) + _spread(bias - mean * gain)  # one multiply-add per element
    return y.astype(x.dtype), mean, var, rate


def _normalize_backward(
    epsilon: float,
    axis_name: str | None,
    residuals: _Residuals,
    cotangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    del epsilon
    x, scale, mean, rate = residuals
    wide, dy = x.astype(jnp.float32), cotangents[0].astype(jnp.float32)
    count = x.shape[1] * x.shape[2]
    along_bias = _mean(dy)
    along_scale = (_mean(dy * wide) - mean * along_bias) * rate
    d_scale, d_bias = (count * jnp.sum(along, 0) for along in (along_scale, along_bias))
    if axis_name is not None:  # other devices' outputs depend on this one's statistics
        along_bias, along_scale = jax.lax.pmean((along_bias, along_scale), axis_name)
    # dx = gain * (dy - along_bias - along_scale * (x - mean) * rate), as two multiply-adds
    gain = scale * rate
    slope = -gain * rate * along_scale
    dx = dy * _spread(gain) + (wide * _spread(slope) - _spread(slope * mean + gain * along_bias))
    return dx.astype(x.dtype), d_scale, d_bias, jnp.zeros_like(scale)


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _mean(x: jax.Array) -> jax.Array:
    """(N, R, W, C) -> (N, C). Row by row: faster on a CPU than all at once, and rounds less."""
    return jnp.sum(jnp.sum(x, 2), 1) / (x.shape[1] * x.shape[2])


def _spread(statistics: jax.Array) -> jax.Array:
    return statistics[:, None, None, :]
