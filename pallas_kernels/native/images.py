"""A local relation of images' values, which are computed where they are needed: `image_rows.h`.

    value = relu((x - mean) @ weights + bias)     key = value @ key     query = value @ query

The values are in memory for neither pass, and their gradient only where the gradient of the images
is asked for.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.native import calls, library, stem
from pallas_kernels.pallas.stem import Inputs, Maps, Sums
from pallas_kernels.spec import Normalizer, Spec


class Kept(NamedTuple):
    """The result, and what the backward pass needs of the forward pass.

    Attributes:
      key: (B, H, W, G * D).
      query: (B, Ho, Wo, G * D).
      out: (B, Ho, Wo, C), the output of the local relation.
      normalizer: (B, Ho, Wo, G) each; None without softmax.
    """

    key: jax.Array
    query: jax.Array
    out: jax.Array
    normalizer: Normalizer | None


def forward(spec: Spec, inputs: Inputs, prior: jax.Array) -> Kept:
    """Keys, queries and the output.

    Args:
      spec: of the local relation.
      inputs: float32; `stem.unsupported` says what is supported.
      prior: (G, Kh, Kw) float32.
    """
    key, query = stem.keys_and_queries(inputs, spec.stride)
    sizes = _sizes(spec, inputs, query, prior)
    plan = library.plan(sizes)
    softmax = spec.normalization == "softmax"
    pixels, channels = query.shape[:-1], inputs.bias.shape[0]
    normalizer = (*pixels, prior.shape[0]) if softmax else (0,)
    shapes = ((*pixels, channels), normalizer, normalizer)
    results = (
        *map(calls.float32_shape, shapes),
        calls.working_memory(plan.tasks, plan.forward_memory),
    )
    arrays = (query, key, *inputs[:4], prior)
    out, *found = calls.call(library.IMAGE_FORWARD, spec, sizes, results, *arrays)
    return Kept(key, query, out, Normalizer(*found) if softmax else None)


def backward(
    spec: Spec, inputs: Inputs, prior: jax.Array, kept: Kept, d_out: jax.Array
) -> tuple[Sums, jax.Array]:
    """The sums from which the gradients of the parameters follow, and the gradient of the prior.

    The gradient of the value is in memory nowhere either.
    """
    maps, parts, d_prior = _backward(spec, inputs, prior, kept, d_out, values=False)
    own = parts.reshape(inputs.mean.shape[0], -1, *parts.shape[1:]).sum(1)
    through = stem.backward(inputs, maps, spec.stride)
    gradient, products = through.gradient + own[:, 0], through.products + own[:, 1:]
    return through._replace(gradient=gradient, products=products), d_prior


def gradients_of_maps(
    spec: Spec, inputs: Inputs, prior: jax.Array, kept: Kept, d_out: jax.Array
) -> Maps:
    """The gradients of value, key and query as the local relation reads them."""
    return _backward(spec, inputs, prior, kept, d_out, values=True)[0]


def _backward(
    spec: Spec, inputs: Inputs, prior: jax.Array, kept: Kept, d_out: jax.Array, *, values: bool
) -> tuple[Maps, jax.Array, jax.Array]:
    """Gradients of maps and prior, and sums; either those of the values or the sums are empty."""
    sizes = _sizes(spec, inputs, kept.query, prior)
    plan = library.plan(sizes)
    parts, channels = kept.query.shape[0] * plan.blocks, inputs.bias.shape[0]
    shapes = (
        kept.query.shape,
        kept.key.shape,
        (*kept.key.shape[:-1], channels) if values else (0,),
        (parts, *prior.shape),
        (0,) if values else (parts, 1 + inputs.x.shape[-1], channels),
    )
    results = (
        *map(calls.float32_shape, shapes),
        calls.working_memory(plan.tasks, plan.backward_memory),
    )
    normalizer = kept.normalizer or Normalizer(*[jnp.zeros((0,), jnp.float32)] * 2)
    arrays = (kept.query, kept.key, *inputs[:4], prior, kept.out, d_out, *normalizer)
    found = calls.call(library.IMAGE_BACKWARD, spec, sizes, results, *arrays)
    d_query, d_key, d_value, d_prior, sums = found
    return Maps(d_value, d_key, d_query), sums, d_prior.sum(0)


def _sizes(spec: Spec, inputs: Inputs, query: jax.Array, prior: jax.Array) -> tuple[int, ...]:
    groups, (means, channels_of_images) = prior.shape[0], inputs.mean.shape
    return calls.sizes(
        spec,
        (*inputs.x.shape[:3], inputs.bias.shape[0]),
        (*query.shape[1:3], groups, query.shape[-1] // groups),
        priors=1,
        inputs=channels_of_images,
        means=means,
    )
