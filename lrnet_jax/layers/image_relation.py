"""The local relation of the stem, of images' values that are in memory nowhere, on a CPU.

`pallas_kernels/native/images.py` computes the values where the local relation reads them, in both
passes. Elsewhere, and in exported programs, values, keys and queries are maps in memory: this is
`image_maps` and then `local_relation`.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lrnet_jax.layers import image_maps
from lrnet_jax.layers.kept import keep
from pallas_kernels import local_relation, native
from pallas_kernels.api import RESIDUALS_NAME
from pallas_kernels.native import images, stem
from pallas_kernels.native.images import Kept
from pallas_kernels.pallas.stem import Inputs, map_shapes
from pallas_kernels.platform_switch import (
    PyTreeFunction,
    by_platform,
    target_capability,
    vary_alike,
)
from pallas_kernels.spec import Inputs as Relation
from pallas_kernels.spec import Normalizer, Spec


class Options(NamedTuple):
    """The static part.

    Attributes:
      spec: of the local relation.
      implementation: of the local relation.
    """

    spec: Spec
    implementation: str | None


def unavailable(options: Options, inputs: Inputs) -> str | None:
    """Why `image_relation` has no advantage here; None if it has one."""
    if options.implementation not in (None, "native"):
        return f"the local relation runs {options.implementation}"
    if target_capability() is not None:
        return "the program is for a GPU"
    shapes = map_shapes(inputs, options.spec.stride)
    relation = Relation(shapes.query, shapes.key, shapes.value)
    return (
        native.unavailable()
        or stem.unsupported(inputs)
        or native.unsupported(options.spec, relation)
    )


def image_relation(options: Options, inputs: Inputs, prior: jax.Array | None) -> jax.Array:
    """The local relation of relu((x - mean) @ weights + bias) with its keys and queries.

    It is differentiable in all arrays.

    Args:
      options: the static part.
      inputs: float32.
      prior: (G, Kh, Kw), or None.

    Returns:
      (B, Ho, Wo, C) float32, what the local relation aggregates.
    """
    if prior is None:
        groups = options.spec.groups(inputs.bias.shape[0])
        prior = jnp.zeros((groups, *options.spec.kernel_size), jnp.float32)
    return _related(options, *vary_alike((inputs, prior.astype(jnp.float32))))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _related(options: Options, inputs: Inputs, prior: jax.Array) -> jax.Array:
    return _switched("forward", options)(inputs, prior).out


def _forward(
    options: Options, inputs: Inputs, prior: jax.Array
) -> tuple[jax.Array, tuple[Inputs, jax.Array, Kept]]:
    found = _switched("forward", options)(inputs, prior)
    result = jax.tree.map(
        lambda x: checkpoint_name(x, RESIDUALS_NAME), (found.out, found.normalizer)
    )
    kept = Kept(keep(found.key), keep(found.query), *result)
    return kept.out, (inputs, prior, kept)


def _backward(
    options: Options, residuals: tuple[Inputs, jax.Array, Kept], d_out: jax.Array
) -> tuple[Inputs, jax.Array]:
    return _switched("backward", options)(*residuals, d_out)


_related.defvjp(_forward, _backward)


@functools.cache  # JAX shares traced programs by the identity of the function
def _switched(direction: str, options: Options) -> PyTreeFunction:
    functions: dict[str, tuple[PyTreeFunction, ...]] = {
        "forward": (_maps_forward, _forward_shapes, _native_forward),
        "backward": (_maps_backward, _backward_shapes, _native_backward),
    }
    maps, shapes, by_library = (functools.partial(f, options) for f in functions[direction])
    return by_platform(maps, shapes=shapes, not_exported=("cpu",), cpu=by_library)


def _native_forward(options: Options, inputs: Inputs, prior: jax.Array) -> Kept:
    return images.forward(options.spec, inputs, prior)


def _native_backward(
    options: Options, inputs: Inputs, prior: jax.Array, kept: Kept, d_out: jax.Array
) -> tuple[Inputs, jax.Array]:
    arrays = (inputs, prior, kept, d_out)
    sums, d_prior = images.backward(options.spec, *arrays)
    # A call of its own, which XLA drops where nobody asks for the gradient of the image.
    d_maps = images.gradients_of_maps(options.spec, *arrays)
    return image_maps.gradients_of_sums(options.spec.stride, inputs, d_maps, sums), d_prior


def _maps_forward(options: Options, inputs: Inputs, prior: jax.Array) -> Kept:
    return _forward_shapes(options, inputs, prior)._replace(out=_of_maps(options, inputs, prior))


def _maps_backward(
    options: Options, inputs: Inputs, prior: jax.Array, kept: Kept, d_out: jax.Array
) -> tuple[Inputs, jax.Array]:
    """By JAX, which runs the forward pass again: it has not kept what these functions need."""
    del kept
    _, vjp = jax.vjp(functools.partial(_of_maps, options), inputs, prior)
    return vjp(d_out)


def _of_maps(options: Options, inputs: Inputs, prior: jax.Array) -> jax.Array:
    maps = image_maps.image_maps(
        image_maps.Options(options.spec.stride, options.implementation), inputs
    )
    groups = prior.shape[0]
    query, key = (x.reshape(*x.shape[:3], groups, -1) for x in (maps.query, maps.key))
    spec = dataclasses.asdict(options.spec)
    return local_relation(
        query, key, maps.value, prior, **spec, implementation=options.implementation
    )


def _forward_shapes(options: Options, inputs: Inputs, prior: jax.Array) -> Kept:
    shapes = map_shapes(inputs, options.spec.stride)
    key, query = (jnp.zeros(x.shape, x.dtype) for x in (shapes.key, shapes.query))
    out = jnp.zeros((*query.shape[:3], inputs.bias.shape[0]), jnp.float32)
    if options.spec.normalization == "none":
        return Kept(key, query, out, None)
    number = jnp.zeros((*query.shape[:3], prior.shape[0]), jnp.float32)
    return Kept(key, query, out, Normalizer(number, number))


def _backward_shapes(
    options: Options, inputs: Inputs, prior: jax.Array, kept: Kept, d_out: jax.Array
) -> tuple[Inputs, jax.Array]:
    del options, kept, d_out
    return jax.tree.map(jnp.zeros_like, (inputs, prior))
