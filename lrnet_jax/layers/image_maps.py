"""Values, keys and queries of images for the local relation of the stem, with one derivative rule.

On a GPU two kernels of `pallas_kernels/pallas/stem` compute them, on a CPU those of
`pallas_kernels/native/stem.cc`, and elsewhere plain JAX. The platform is chosen when the program is
lowered.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

import pallas_kernels.pallas
from lrnet_jax.layers.isolation import computed_once
from pallas_kernels.native import stem as native_stem
from pallas_kernels.pallas import stem
from pallas_kernels.pallas.stem import Inputs, Maps, Sums
from pallas_kernels.platform_switch import (
    Parts,
    PyTreeFunction,
    by_platform,
    current_platform,
    vary_alike,
)

# Of the maps, the value alone: what is computed again where keys and queries are kept.
_VALUE = (True, False, False)


class Options(NamedTuple):
    """The static part.

    Attributes:
      stride: of the queries.
      implementation: of the local relation. None takes the kernels where they run, "pallas" on
        every GPU, "native" on the CPU, and "pallas_interpret" those for GPUs everywhere, in JAX's
        interpreter. The others take plain JAX.
    """

    stride: int
    implementation: str | None = None


def image_maps(options: Options, inputs: Inputs) -> Maps:
    """Computes value = relu((x - mean) @ weights + bias), its keys, and queries of some pixels.

    Sums are float32, and the maps have the dtype of x. It is differentiable in all arrays.
    """
    return _maps(options, vary_alike(inputs))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _maps(options: Options, inputs: Inputs) -> Maps:
    return _forward(options, inputs)[0]


def _forward(options: Options, inputs: Inputs) -> tuple[Maps, tuple[Inputs, jax.Array]]:
    maps = _switched("forward", options, _with_kernels(options, inputs))(inputs)
    # Plain JAX needs the value again. It is kept in any case: the local relation does.
    return maps, (inputs, maps.value)


def _backward(options: Options, residuals: tuple[Inputs, jax.Array], d_maps: Maps) -> tuple[Inputs]:
    platforms = _with_kernels(options, residuals[0])
    return (_switched("backward", options, platforms)(*residuals, d_maps),)


_maps.defvjp(_forward, _backward)


def _with_kernels(options: Options, inputs: Inputs) -> tuple[str, ...]:
    """The platforms whose programs have kernels."""
    found = []
    if options.implementation in (None, "native") and native_stem.unsupported(inputs) is None:
        # A program for CPUs runs here: it is either not exported, or has plain JAX.
        found += [] if native_stem.unavailable() else ["cpu"]
    if options.implementation in (None, "pallas", "pallas_interpret"):
        # A program for GPUs may be compiled for another machine.
        runs = current_platform() != "cuda" or pallas_kernels.pallas.unavailable() is None
        found += ["cuda"] if runs and stem.unsupported(inputs) is None else []
    return tuple(found)


@functools.cache  # JAX shares traced programs by the identity of the function
def _switched(direction: str, options: Options, platforms: tuple[str, ...]) -> PyTreeFunction:
    functions: dict[str, tuple[PyTreeFunction, PyTreeFunction]] = {
        "forward": (_plain_forward, _kernel_forward),
        "backward": (_plain_backward, _kernel_backward),
    }
    plain, by_kernels = (functools.partial(f, options.stride) for f in functions[direction])
    if not platforms:  # no switch, so that policies of recomputation see the products
        return plain
    if options.implementation == "pallas_interpret" and "cuda" in platforms:
        return by_platform(functools.partial(by_kernels, _INTERPRETED))
    kernels = {name: functools.partial(by_kernels, _KERNELS[name]) for name in platforms}
    parts: Parts = {_VALUE: _plain_value} if direction == "forward" else {}
    return by_platform(plain, not_exported=("cpu",), parts=parts, **kernels)


class _Kernels(NamedTuple):
    """Those of one platform."""

    forward: Callable[[Inputs, int], Maps]
    backward: Callable[[Inputs, Maps, int], Sums]


_INTERPRETED = _Kernels(
    functools.partial(stem.forward, interpret=True),
    functools.partial(stem.backward, interpret=True),
)
_KERNELS = {
    "cpu": _Kernels(native_stem.forward, native_stem.backward),
    "cuda": _Kernels(stem.forward, stem.backward),
}


def _kernel_forward(stride: int, kernels: _Kernels, inputs: Inputs) -> Maps:
    return kernels.forward(inputs, stride)


def _kernel_backward(
    stride: int, kernels: _Kernels, inputs: Inputs, value: jax.Array, d_maps: Maps
) -> Inputs:
    del value
    return gradients_of_sums(stride, inputs, d_maps, kernels.backward(inputs, d_maps, stride))


def gradients_of_sums(stride: int, inputs: Inputs, d_maps: Maps, sums: Sums) -> Inputs:
    """All gradients, of which that of the image needs the gradients of the maps."""
    # XLA drops this where nobody asks for the gradient of the image: adversarial training does. The
    # gradient is linear in those of the maps, so that any value does.
    masked = _masked(inputs, _of_value(stride, inputs, d_maps.value, d_maps)[0])
    return _gradients(inputs, masked, sums.gradient, sums.products, sums.key, sums.query)


def _plain_forward(stride: int, inputs: Inputs) -> Maps:
    [value] = _plain_value(inputs)
    return Maps(value, *project(stride, value, inputs.key, inputs.query))


def _plain_value(inputs: Inputs) -> list[jax.Array]:
    """The value without keys and queries: one pass that writes it, on a GPU too."""
    return [computed_once(_rectified)(*inputs[:4])]


def _plain_backward(stride: int, inputs: Inputs, value: jax.Array, d_maps: Maps) -> Inputs:
    # Otherwise XLA:GPU keeps the sign that the forward pass computed.
    inputs, value = jax.lax.optimization_barrier((inputs, value))
    d_value, d_key, d_query = _of_value(stride, inputs, value, d_maps)
    masked = _masked(inputs, d_value)
    rows = _in_groups(inputs.x, inputs.mean)
    centred = rows.astype(jnp.float32) - inputs.mean[:, None, None]
    products = [_total(masked * centred[..., i : i + 1]) for i in range(rows.shape[-1])]
    return _gradients(inputs, masked, _total(masked), jnp.stack(products, 1), d_key, d_query)


def _gradients(
    inputs: Inputs,
    masked: jax.Array,
    along_bias: jax.Array,
    along_x: jax.Array,
    d_key: jax.Array,
    d_query: jax.Array,
) -> Inputs:
    """All gradients, from that before the ReLU (N, R, W, C) and its sums (N, C) and (N, I, C)."""
    x, weights = inputs.x, inputs.weights
    d_x = [jnp.sum(masked * weights[:, None, None, i], -1) for i in range(x.shape[-1])]
    return Inputs(
        jnp.stack(d_x, -1).reshape(x.shape).astype(x.dtype),
        -jnp.einsum("nic,nc->ni", weights, along_bias, precision="highest"),
        along_x,
        jnp.sum(along_bias, 0),
        d_key.astype(inputs.key.dtype),
        d_query.astype(inputs.query.dtype),
    )


def _rectified(x: jax.Array, mean: jax.Array, weights: jax.Array, bias: jax.Array) -> jax.Array:
    linear = _linear(_in_groups(x, mean), mean, weights, bias)
    return jnp.maximum(linear, 0).astype(x.dtype).reshape(*x.shape[:-1], -1)


def _linear(x: jax.Array, mean: jax.Array, weights: jax.Array, bias: jax.Array) -> jax.Array:
    """As multiply-adds of few channels, which fuse with what follows: (N, R, W, C) float32."""
    centred, total = x.astype(jnp.float32) - mean[:, None, None], bias
    for i in range(x.shape[-1]):
        total = total + centred[..., i : i + 1] * weights[:, None, None, i]
    return total


def _masked(inputs: Inputs, d_value: jax.Array) -> jax.Array:
    """The gradient before the ReLU, (N, R, W, C) float32."""
    x, mean, weights, bias, *_ = inputs
    positive = _linear(_in_groups(x, mean), mean, weights, bias) > 0
    return jnp.where(positive, _in_groups(d_value, mean).astype(jnp.float32), 0)


def project(
    stride: int, value: jax.Array, key: jax.Array, query: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Keys and queries; pixels are the rows of a matrix, as in `ChannelTransformation`."""

    def rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
        product = jnp.dot(x.reshape(-1, x.shape[-1]), kernel.astype(x.dtype))
        return product.reshape(*x.shape[:-1], -1)

    if stride == 1:  # one product, which reads the values once
        both = rows(value, jnp.concatenate([key, query], 1))
        return both[..., : key.shape[1]], both[..., key.shape[1] :]
    return rows(value, key), rows(value[:, ::stride, ::stride], query)


def _of_value(
    stride: int, inputs: Inputs, value: jax.Array, d_maps: Maps
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of the value, from all three maps, and of both projections."""
    _, vjp = jax.vjp(functools.partial(project, stride), value, inputs.key, inputs.query)
    d_value, d_key, d_query = vjp((d_maps.key, d_maps.query))
    return d_maps.value + d_value, d_key, d_query


def _in_groups(x: jax.Array, mean: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (N, R, W, C), of the N groups of images that share a mean."""
    return x.reshape(mean.shape[0], -1, *x.shape[2:])


def _total(x: jax.Array) -> jax.Array:
    """(N, R, W, C) -> (N, C)."""
    return jnp.sum(jnp.sum(x, 2), 1)
