"""A channel transformation of images with its batch normalisation and ReLU, in one pass.

The statistics of a linear map follow from the mean and the covariance of its input. An image has 3
channels and the stem's output has 64, at every pixel of the image. So the statistics are taken over
the image, and the output is written once and never read for them; in the backward pass, its
gradient is read once. Keys and queries of the local relation that follows come from the same pass.
"""

from typing import TypeGuard

import jax
import jax.numpy as jnp

from lrnet_jax.layers import image_relation
from lrnet_jax.layers.batch_norm import BatchNorm
from lrnet_jax.layers.channel_transformation import ChannelTransformation, Product
from lrnet_jax.layers.image_maps import Options, image_maps
from lrnet_jax.layers.kept import keep
from lrnet_jax.layers.local_relation import LocalRelation
from pallas_kernels.pallas.stem import Inputs, Maps

MAX_CHANNELS = 4


def is_input(layer: object) -> TypeGuard[ChannelTransformation]:
    """Whether `transform_input` can stand for relu(norm(layer(x))): for images."""
    return (
        isinstance(layer, ChannelTransformation)
        and layer.in_features <= MAX_CHANNELS
        and layer.bias is None
        and layer.strides == 1
    )


def transform_input(
    layer: ChannelTransformation, norm: BatchNorm, relation: LocalRelation, x: jax.Array
) -> Maps:
    """Values, keys and queries of `relation` for relu(norm(layer(x))), of x (B, H, W, I).

    In training it also moves the running averages of the norm.

    Raises:
      ValueError: the batch is not a multiple of the norm's `group_images`.
    """
    return _maps(relation, _linear_map(layer, norm, relation, x))


def relate_input(
    layer: ChannelTransformation,
    norm: BatchNorm,
    relation: LocalRelation,
    x: jax.Array,
    product: Product | None = None,
) -> jax.Array:
    """relation(relu(norm(layer(x)))); arguments and errors are those of `transform_input`.

    `product` is that of the relation's last transformation, as it takes it.
    """
    inputs = _linear_map(layer, norm, relation, x)
    options = image_relation.Options(relation.spec, relation.implementation)
    if image_relation.unavailable(options, inputs) is None:
        prior = relation.geometric_prior()
        related = image_relation.image_relation(options, inputs, prior)
        return relation.output(related, product=product)
    return relation.of_maps(_maps(relation, inputs), product=product)


def _maps(relation: LocalRelation, inputs: Inputs) -> Maps:
    maps = image_maps(Options(relation.strides, relation.implementation), inputs)
    return Maps(maps.value, keep(maps.key), keep(maps.query))


def _linear_map(
    layer: ChannelTransformation, norm: BatchNorm, relation: LocalRelation, x: jax.Array
) -> Inputs:
    """What values, keys and queries are computed from. Moves the averages of the norm."""
    kernel = layer.kernel[...].astype(jnp.float32)
    projections = relation.key.kernel[...], relation.query.kernel[...]
    if norm.use_running_average:
        (gain, offset), mean_x = norm.gain_and_offset(), jnp.zeros((1, x.shape[-1]))
        return Inputs(x, mean_x, (kernel * gain)[None], offset, *projections)
    mean_x, covariance = map(keep, _moments(norm.to_groups(x), norm.axis_name))
    mean = _exact("ni,ic->nc", mean_x, kernel)
    # Rounding may leave a constant channel a variance just below zero.
    var = jnp.maximum(_exact("ic,nij,jc->nc", kernel, covariance, kernel), 0)
    norm.move_averages(mean, var)
    gain = norm.scale[...] * jax.lax.rsqrt(var + norm.epsilon)
    # About the mean of the image: sums of products with the gradient do not cancel then.
    return Inputs(x, mean_x, kernel * gain[:, None], norm.bias[...], *projections)


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
