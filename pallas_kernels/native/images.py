"""A local relation of images' values, which are computed where they are needed: `image_rows.h`.

    value = relu((x - mean) @ weights + bias)     key = value @ key     query = value @ query

The values are never in memory, neither for the forward pass nor for the backward pass.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.native import calls, library, stem
from pallas_kernels.pallas.stem import Inputs, Maps
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
) -> tuple[Maps, jax.Array]:
    """The gradients of value, key and query as the relation reads them, and of the prior."""
    sizes = _sizes(spec, inputs, kept.query, prior)
    plan = library.plan(sizes)
    batch = kept.query.shape[0]
    value = (*kept.key.shape[:-1], inputs.bias.shape[0])
    shapes = kept.query.shape, kept.key.shape, value, (batch * plan.blocks, *prior.shape)
    results = (
        *map(calls.float32_shape, shapes),
        calls.working_memory(plan.tasks, plan.backward_memory),
    )
    normalizer = kept.normalizer or Normalizer(*[jnp.zeros((0,), jnp.float32)] * 2)
    arrays = (kept.query, kept.key, *inputs[:4], prior, kept.out, d_out, *normalizer)
    found = calls.call(library.IMAGE_BACKWARD, spec, sizes, results, *arrays)
    d_query, d_key, d_value, d_prior = found
    return Maps(d_value, d_key, d_query), d_prior.sum(0)


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
