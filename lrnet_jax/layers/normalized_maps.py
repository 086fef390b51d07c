"""A normalisation, its ReLU, and the keys and queries of the local relation that follows, as one.

On a GPU three kernels of `pallas_kernels/pallas/projections` compute them and their gradients, and
elsewhere plain JAX. The platform is chosen when the program is lowered. What the kernels do not
take, the layers compute one after the other: channels of 32 bits, wide layers, evaluation.
"""

import functools
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

import pallas_kernels.pallas
from lrnet_jax.layers.batch_norm import BatchNorm, statistics, terms
from lrnet_jax.layers.image_maps import project
from lrnet_jax.layers.isolation import computed_once
from lrnet_jax.layers.kept import keep
from lrnet_jax.layers.local_relation import LocalRelation
from pallas_kernels.pallas import projections
from pallas_kernels.pallas.projections import Maps, Sums
from pallas_kernels.platform_switch import (
    PyTreeFunction,
    by_platform,
    current_platform,
    vary_alike,
)


class _Options(NamedTuple):
    """The static part.

    Attributes:
      epsilon: added to the variance.
      axis_name: a mapped axis over which statistics are taken, or None.
      groups: N, of images that share statistics.
      stride: of the queries.
      interpret: whether the kernels run in JAX's interpreter, everywhere.
    """

    epsilon: float
    axis_name: str | None
    groups: int
    stride: int
    interpret: bool


class _Arrays(NamedTuple):
    """The arrays; C is filled up.

    Attributes:
      x: (B, H, W, C), before the normalisation.
      scale: (C,) float32.
      bias: (C,) float32.
      pivot: (C,) float32, near the mean of each channel.
      key: (C, K) float32.
      query: (C, Q) float32.
    """

    x: jax.Array
    scale: jax.Array
    bias: jax.Array
    pivot: jax.Array
    key: jax.Array
    query: jax.Array


def is_joint(relation: object, norm: BatchNorm, x: jax.Array) -> TypeGuard[LocalRelation]:
    """Whether `normalized_maps` takes the normalisation of x and what follows it."""
    if not isinstance(relation, LocalRelation) or norm.use_running_average:
        return False
    if relation.implementation not in (None, "pallas", "pallas_interpret"):
        return False
    if any(dtype not in (None, x.dtype) for dtype in (norm.dtype, relation.dtype)):
        return False
    groups = norm.to_groups(x).shape[0]
    gain = jax.ShapeDtypeStruct((groups, x.shape[-1]), jnp.float32)
    weights = relation.key.kernel[...], relation.query.kernel[...]
    if projections.unsupported(projections.Inputs(x, gain, gain, *weights)) is not None:  # type: ignore[arg-type]
        return False
    # A program may be compiled for another machine.
    return current_platform() != "cuda" or pallas_kernels.pallas.unavailable() is None


def normalized_maps(
    norm: BatchNorm, relation: LocalRelation, x: jax.Array, multiple: int = 1
) -> Maps:
    """Values, keys and queries of `relation` for relu(norm(x)), of x (B, H, W, C).

    C is filled up by zeros to the multiple. It also moves the running averages of the norm.

    Raises:
      ValueError: the batch is not a multiple of the norm's `group_images`.
    """
    scale, bias, pivot, _ = norm.filled_up(multiple)
    channels = norm.scale.shape[0]
    spare = ((0, x.shape[-1] - channels), (0, 0))
    key, query = (jnp.pad(t.kernel[...], spare) for t in (relation.key, relation.query))
    interpret = relation.implementation == "pallas_interpret"
    groups = norm.to_groups(x).shape[0]
    options = _Options(norm.epsilon, norm.axis_name, groups, relation.strides, interpret)
    arrays = vary_alike(_Arrays(x, scale, bias, pivot, key, query))
    maps, mean, var = _maps(options, arrays)
    norm.move_averages(mean[:, :channels], var[:, :channels])
    return maps


_Outputs = tuple[Maps, jax.Array, jax.Array]  # maps, mean, variance
_Residuals = tuple[_Arrays, jax.Array, jax.Array, jax.Array]  # mean, 1 / deviation, value


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _maps(options: _Options, arrays: _Arrays) -> _Outputs:
    return _forward(options, arrays)[0]


def _forward(options: _Options, arrays: _Arrays) -> tuple[_Outputs, _Residuals]:
    arrays = arrays._replace(x=_row_by_row(arrays.x))
    x = _in_groups(arrays.x, options.groups)
    mean, var, inverse = statistics(x, arrays.pivot, options.epsilon, options.axis_name)
    maps = _switched("forward", options)(_inputs(arrays, mean, inverse))
    maps = Maps(*map(keep, maps))
    # Plain JAX needs the value again. It is kept in any case: the local relation does.
    return (maps, mean, var), (arrays, mean, inverse, maps.value)


def _backward(options: _Options, residuals: _Residuals, cotangents: _Outputs) -> tuple[_Arrays]:
    arrays, mean, inverse, value = residuals
    inputs, d_maps = _inputs(arrays, mean, inverse), cotangents[0]
    sums, d_maps = _switched("sums", options)(inputs, value, d_maps)
    count = arrays.x.size // (options.groups * arrays.x.shape[-1])
    means = sums.gradient / count, sums.products / count
    d_scale, d_bias, slope, constant = terms(
        means, count, arrays.scale, mean, inverse, options.axis_name
    )
    d_x = _switched("gradient", options)(inputs, d_maps, slope, constant)
    pivot = jnp.zeros_like(arrays.pivot)
    return (_Arrays(d_x, d_scale, d_bias, pivot, sums.key, sums.query),)


_maps.defvjp(_forward, _backward)


def _inputs(arrays: _Arrays, mean: jax.Array, inverse: jax.Array) -> projections.Inputs:
    gain = arrays.scale * inverse
    offset = arrays.bias - mean * gain
    return projections.Inputs(arrays.x, gain, offset, arrays.key, arrays.query)


@functools.cache  # JAX shares traced programs by the identity of the function
def _switched(part: str, options: _Options) -> PyTreeFunction:
    functions: dict[str, tuple[PyTreeFunction, PyTreeFunction]] = {
        "forward": (_plain_forward, _kernel_forward),
        "sums": (_plain_sums, _kernel_sums),
        "gradient": (_plain_gradient, _kernel_gradient),
    }
    plain, on_gpu = functions[part]
    kernel = functools.partial(on_gpu, options.stride, options.interpret)
    if options.interpret:
        return by_platform(kernel)
    return by_platform(functools.partial(plain, options.stride), cuda=kernel)


def _kernel_forward(stride: int, interpret: bool, inputs: projections.Inputs) -> Maps:
    return projections.forward(inputs, stride, interpret=interpret)


def _kernel_sums(
    stride: int, interpret: bool, inputs: projections.Inputs, value: jax.Array, d_maps: Maps
) -> tuple[Sums, Maps]:
    del value  # computed again in registers
    return projections.sums(inputs, d_maps, stride, interpret=interpret), d_maps


def _kernel_gradient(
    stride: int,
    interpret: bool,
    inputs: projections.Inputs,
    d_maps: Maps,
    slope: jax.Array,
    constant: jax.Array,
) -> jax.Array:
    return projections.gradient(inputs, d_maps, slope, constant, stride, interpret=interpret)


def _plain_forward(stride: int, inputs: projections.Inputs) -> Maps:
    x = _in_groups(inputs.x, inputs.gain.shape[0])
    y = computed_once(_rectified)(x, _to_pixels(inputs.gain), _to_pixels(inputs.offset))
    value = y.reshape(inputs.x.shape)
    return Maps(value, *project(stride, value, inputs.key, inputs.query))


def _plain_sums(
    stride: int, inputs: projections.Inputs, value: jax.Array, d_maps: Maps
) -> tuple[Sums, Maps]:
    """The sums, and gradients of the maps of which that of the value has the shares of all."""
    _, vjp = jax.vjp(functools.partial(project, stride), value, inputs.key, inputs.query)
    d_value, d_key, d_query = vjp((d_maps.key, d_maps.query))
    d_maps = d_maps._replace(value=d_maps.value + d_value)
    x, masked = _masked(inputs, d_maps)
    gradient, products = (jnp.sum(jnp.sum(part, 2), 1) for part in (masked, masked * x))
    return Sums(gradient, products, d_key, d_query), d_maps


def _plain_gradient(
    stride: int,
    inputs: projections.Inputs,
    d_maps: Maps,
    slope: jax.Array,
    constant: jax.Array,
) -> jax.Array:
    del stride
    x, masked = _masked(inputs, d_maps)
    d_x = masked * _to_pixels(inputs.gain) + (x * _to_pixels(slope) - _to_pixels(constant))
    return d_x.reshape(inputs.x.shape).astype(inputs.x.dtype)


def _masked(inputs: projections.Inputs, d_maps: Maps) -> tuple[jax.Array, jax.Array]:
    """The channels and the gradient before the ReLU, (N, R, W, C) float32."""
    x, d_value = (_in_groups(a, inputs.gain.shape[0]) for a in (inputs.x, d_maps.value))
    x = x.astype(jnp.float32)
    linear = x * _to_pixels(inputs.gain) + _to_pixels(inputs.offset)
    return x, jnp.where(linear > 0, d_value.astype(jnp.float32), 0)


def _rectified(x: jax.Array, gain: jax.Array, offset: jax.Array) -> jax.Array:
    return jnp.maximum(x * gain + offset, 0.0).astype(x.dtype)


def _constrained(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _as_it_is(x: jax.Array) -> jax.Array:
    return x


# The channels of a pixel side by side, as the kernels take them. Otherwise XLA:GPU lays out the
# product that makes x channel by channel, for the statistics, and copies it for the kernels.
_row_by_row = by_platform(_as_it_is, cuda=_constrained)


def _in_groups(x: jax.Array, groups: int) -> jax.Array:
    """(B, H, W, C) -> (N, R, W, C), of N groups of images."""
    return x.reshape(groups, -1, *x.shape[2:])


def _to_pixels(parameter: jax.Array) -> jax.Array:
    """(N, C) -> (N, 1, 1, C)."""
    return parameter[:, None, None]
