"""The custom calls: their arrays, their memory, and how they are vectorised."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.native import library
from pallas_kernels.spec import SIMILARITIES, Spec

# The C++ widens bfloat16 as it reads. XLA widens what else is narrow.
READ = (jnp.float32, jnp.bfloat16)

Arrays = tuple[jax.Array, ...]


def readable(array: jax.Array) -> jax.Array:
    """The array in a dtype that the C++ reads."""
    return array if array.dtype in READ else array.astype(jnp.float32)


def forward(
    spec: Spec, query: jax.Array, key: jax.Array, value: jax.Array, prior: jax.Array, out_dtype: Any
) -> Arrays:
    """Output in `out_dtype`, shift and factor; without softmax the last two are empty."""
    return _forward(spec, jnp.dtype(out_dtype))(query, key, value, prior[None])


def backward(spec: Spec, *arrays: jax.Array) -> Arrays:
    """Gradients of query, key and value, and of the prior for each image (B, G, Kh, Kw).

    Args:
      spec: the options.
      *arrays: query, key, value, prior, out (float32; anything without softmax), the gradient of
        the output, shift and factor (float32; empty without softmax).
    """
    query, key, value, prior, *rest = arrays
    return _backward(spec)(query, key, value, prior[None], *rest)


@functools.cache
def _forward(spec: Spec, out_dtype: np.dtype) -> Callable[..., Arrays]:
    def run(query: jax.Array, key: jax.Array, value: jax.Array, prior: jax.Array) -> Arrays:
        pixels = query.shape[:-1]
        normalizer = float32_shape(pixels if spec.normalization == "softmax" else (0,))
        out = jax.ShapeDtypeStruct((*pixels[:-1], value.shape[-1]), out_dtype)
        numbers = sizes(spec, value.shape, query.shape[1:], prior.shape[0])
        plan = library.plan(numbers)
        memory = working_memory(plan.tasks, plan.forward_memory)
        results = (out, normalizer, normalizer, memory)
        return call(library.FORWARD, spec, numbers, results, query, key, value, prior)

    return _over_images(run)


@functools.cache
def _backward(spec: Spec) -> Callable[..., Arrays]:
    def run(*arrays: jax.Array) -> Arrays:
        query, key, value, prior, *_ = arrays
        numbers = sizes(spec, value.shape, query.shape[1:], prior.shape[0])
        plan = library.plan(numbers)
        batch, groups = query.shape[0], query.shape[3]
        results = (
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)),
            float32_shape((batch * plan.blocks, groups, *spec.kernel_size)),
            working_memory(plan.tasks, plan.backward_memory),
        )
        *gradients, d_prior = call(library.BACKWARD, spec, numbers, results, *arrays)
        d_prior = d_prior.reshape(batch, plan.blocks, *d_prior.shape[1:]).sum(1)
        return *gradients, d_prior

    return _over_images(run)


def call(
    name: str, spec: Spec, numbers: tuple[int, ...], results: tuple, *arrays: jax.Array
) -> Arrays:
    """The results of a custom call but for the last, which is memory that it works in."""
    options = {
        "sizes": np.array(numbers, np.int64),
        "softmax": spec.normalization == "softmax",
        "scale": np.float32(spec.scale),
    }
    return tuple(jax.ffi.ffi_call(name, results, vmap_method="sequential")(*arrays, **options))[:-1]


def sizes(
    spec: Spec,
    value: tuple[int, ...],
    targets: tuple[int, ...],
    priors: int,
    inputs: int = 0,
    means: int = 0,
) -> tuple[int, ...]:
    """The fields of `Problem` in `problem.h`, in order.

    Args:
      spec: the options.
      value: (B, H, W, C).
      targets: (Ho, Wo, G, D).
      priors: how many.
      inputs: channels of the images that values are computed from, if they are.
      means: how many means these images have.
    """
    return (
        *value,
        *targets,
        *spec.kernel_size,
        spec.channels_per_group,
        spec.stride,
        spec.dilation,
        priors,
        SIMILARITIES.index(spec.similarity),
        inputs,
        means,
    )


def working_memory(tasks: int, floats: int) -> jax.ShapeDtypeStruct:
    """What the threads of a call work in, as one of its results: XLA counts it and frees it."""
    return float32_shape((min(tasks, cores()), floats))


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def float32_shape(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """A result in float32."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _over_images(call: Callable[..., Arrays]) -> Callable[..., Arrays]:
    """Under vmap, a call whose first axis holds the images of all problems, one after another.

    Several priors follow one another likewise: each belongs to an equal share of the images.
    """
    mapped = jax.custom_batching.custom_vmap(call)

    @mapped.def_vmap
    def rule(size: int, batched: tuple[bool, ...], *arrays: jax.Array) -> tuple[Arrays, Any]:
        def merge(array: jax.Array, is_batched: bool) -> jax.Array:
            if array.size == 0:  # a normaliser that does not exist
                return array[0] if is_batched else array
            if not is_batched:
                array = jnp.broadcast_to(array, (size, *array.shape))
            return array.reshape(-1, *array.shape[2:])

        results = mapped(*map(merge, arrays, batched))
        split = tuple(x.reshape(size, x.shape[0] // size, *x.shape[1:]) for x in results)
        return split, (True,) * len(split)

    return mapped
