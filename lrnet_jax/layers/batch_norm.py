"""Batch normalisation over a device's images, over groups of them, or over all devices."""

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
        mean, var = self.mean[...], self.var[...]
        if not self.use_running_average:
            mean, var = self._batch_statistics(x)  # (groups, C)
            self._update(mean, var)
        # One multiply-add per element, in float32; XLA fuses the casts into it.
        gain = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        offset = self.bias[...] - mean * gain
        dtype = self.dtype or x.dtype
        if mean.ndim == 1 or mean.shape[0] == 1:
            return (x * gain.reshape(-1) + offset.reshape(-1)).astype(dtype)
        grouped = x.reshape(mean.shape[0], -1, x.shape[-1])
        return (grouped * gain[:, None] + offset[:, None]).astype(dtype).reshape(x.shape)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        images = self.group_images or x.shape[0]
        if x.shape[0] % images:
            raise ValueError(
                f"a batch of {x.shape[0]} images (per device) is not a multiple of "
                f"group_images {images}; change one of them"
            )
        # One pass over x. Squares are taken about the running mean: about zero they cancel badly
        # where a channel's mean is large against its deviation.
        pivot = jax.lax.stop_gradient(self.mean[...])
        centred = x.reshape(x.shape[0] // images, -1, x.shape[-1]).astype(jnp.float32) - pivot
        first, second = jnp.mean(centred, 1), jnp.mean(centred * centred, 1)
        if self.axis_name is not None:
            first, second = jax.lax.pmean((first, second), self.axis_name)
        # Rounding may leave a constant channel a variance just below zero.
        return pivot + first, jnp.maximum(second - first * first, 0)

    def _update(self, mean: jax.Array, var: jax.Array) -> None:
        for average, batch in ((self.mean, mean), (self.var, var)):
            batch = jax.lax.stop_gradient(jnp.mean(batch, 0))
            average[...] = self.momentum * average[...] + (1 - self.momentum) * batch
