"""Values, keys and queries of images in one pass over memory; `stem.cc` has the algorithm.

It has the face of `pallas_kernels.pallas.stem`, for float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.native import calls, library
from pallas_kernels.pallas.stem import Inputs, Maps, Sums, map_shapes

MAX_INPUTS = 4


def unsupported(inputs: Inputs) -> str | None:
    """Why the library cannot run this on any CPU; None if it can. Takes abstract arrays too."""
    if any(array.dtype != jnp.float32 for array in inputs):
        return "it computes in float32, of float32"
    if inputs.x.shape[-1] > MAX_INPUTS:
        return f"images have {inputs.x.shape[-1]} channels, more than {MAX_INPUTS}"
    return None


def unavailable() -> str | None:
    """Why this machine cannot run it; None if it can. A program for CPUs may be run elsewhere."""
    return library.obstacle()


def forward(inputs: Inputs, stride: int) -> Maps:
    """The maps of images.

    Args:
      inputs: the arrays.
      stride: of the queries.
    """
    return _forward(inputs, stride, map_shapes(inputs, stride))


def keys_and_queries(inputs: Inputs, stride: int) -> tuple[jax.Array, jax.Array]:
    """The maps without the value, which is not written; arguments as in `forward`."""
    shapes = calls.float32_shape((0,)), *map_shapes(inputs, stride)[1:]
    _, key, query = _forward(inputs, stride, shapes)
    return key, query


def _forward(inputs: Inputs, stride: int, shapes: tuple) -> Maps:
    sizes = _sizes(inputs, stride)
    plan = library.stem_plan(sizes)
    results = (*shapes, calls.working_memory(plan.tasks, plan.forward_memory))
    return Maps(*_call(library.STEM_FORWARD, sizes, results, *inputs)[:-1])


def backward(inputs: Inputs, d_maps: Maps, stride: int) -> Sums:
    """The sums from which the gradients of the parameters follow; arguments as in `forward`.

    The gradient of the value may be empty: the sums are then without it.
    """
    sizes = _sizes(inputs, stride)
    plan = library.stem_plan(sizes)
    (groups, images), channels = inputs.mean.shape, inputs.bias.shape[0]
    keys, queries = inputs.key.shape[1], inputs.query.shape[1]
    rows = 1 + images + keys + queries
    results = (
        calls.float32_shape((plan.tasks, rows, channels)),
        calls.working_memory(plan.tasks, plan.backward_memory),
    )
    parts, _ = _call(library.STEM_BACKWARD, sizes, results, *inputs, *d_maps)
    own, shared = jnp.split(parts, [1 + images], 1)
    own = own.reshape(groups, -1, 1 + images, channels).sum(1)
    key, query = jnp.split(shared.sum(0), [keys])
    return Sums(own[:, 0], own[:, 1:], key.T, query.T)


def _call(
    name: str, sizes: tuple[int, ...], results: tuple, *arrays: jax.Array
) -> tuple[jax.Array, ...]:
    call = jax.ffi.ffi_call(name, results, vmap_method="sequential")
    return tuple(call(*arrays, sizes=np.array(sizes, np.int64)))


def _sizes(inputs: Inputs, stride: int) -> tuple[int, ...]:
    """The fields of `Stem` in `stem.h`, in order."""
    channels, keys, queries = (
        inputs.bias.shape[0],
        inputs.key.shape[1],
        inputs.query.shape[1],
    )
    return (*inputs.x.shape, channels, keys, queries, inputs.mean.shape[0], stride)
