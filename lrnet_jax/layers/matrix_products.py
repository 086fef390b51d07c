"""Products of pixels with a kernel; on a CPU they and their gradients are C++.

XLA:CPU fills the columns of a product up to multiples of 64. The gradient of the kernel is a sum
over pixels, of which it transposes both operands first. `pallas_kernels/native/row_products.cc`
and `weight_gradients.cc` do neither, where the library is there. The platform is chosen when the
program is lowered, and other platforms have the program of `jnp.dot`.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from pallas_kernels.native import row_products, weight_gradients
from pallas_kernels.platform_switch import (
    PyTreeFunction,
    by_platform,
    switches_are_off,
    vary_alike,
)

NO_BATCH = ((), ())
ROWS_TIMES_KERNEL = (((1,), (0,)), NO_BATCH)  # as `lax.dot_general` has them


def dot_general(
    rows: jax.Array, kernel: jax.Array, dimensions: Any, *, precision: Any = None, **options: Any
) -> jax.Array:
    """`lax.dot_general`, for nnx.Linear; a product of float32 matrices is that of `product`."""
    special = precision is not None or any(x is not None for x in options.values())
    if special or dimensions != ROWS_TIMES_KERNEL or not _is_native(rows, kernel):
        return jax.lax.dot_general(rows, kernel, dimensions, precision=precision, **options)
    return _traced_once(rows, kernel)


def product(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """(P, K) times (K, N), as jnp.dot has it."""
    return _traced_once(rows, kernel) if _is_native(rows, kernel) else jnp.dot(rows, kernel)


def _is_native(rows: jax.Array, kernel: jax.Array) -> bool:
    if switches_are_off():  # what is traced once has one
        return False
    supported = weight_gradients.unsupported(rows, kernel) is None
    return supported and not is_sharded(rows, kernel) and weight_gradients.unavailable() is None


def is_sharded(*arrays: jax.Array) -> bool:
    """Whether the type of an array says how it is spread over devices; a custom call cannot."""
    return any(jax.typeof(x).sharding.spec.count(None) < x.ndim for x in arrays)


def _options() -> dict[str, Any]:
    # The program is traced when it is lowered, and the precision may be another one by then.
    precision = jax.config.jax_default_matmul_precision
    return {"mapped": 0, "precision": precision, "transposed": False}


@jax.custom_jvp
def _product(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    return _function(_times, **_options())(rows, kernel)


@partial(_product.defjvp, symbolic_zeros=True)
def _product_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (rows, kernel), (d_rows, d_kernel) = primals, tangents
    y = _product(rows, kernel)
    pairs = ((d_rows, kernel), (rows, d_kernel))
    known = [pair for pair in pairs if not any(isinstance(x, SymbolicZero) for x in pair)]
    parts = [_times.bind(*vary_alike(pair), **_options()) for pair in known]
    return y, sum(parts[1:], start=parts[0]) if parts else jnp.zeros_like(y)


# Layers of equal shapes share the program and its derivatives. It leaves no trace in programs.
_traced_once = jax.jit(_product, inline=True)

# Of rows and a kernel, or its transpose: the product, a linear map of each. Its transposes are
# that with the other kernel, and _gradient.
_times = Primitive("lrnet_rows_times_kernel")
# Of rows and what is like the product: the gradient of the kernel.
_gradient = Primitive("lrnet_kernel_gradient")


def _plain_times(precision: Any, transposed: bool, rows: jax.Array, kernel: jax.Array) -> jax.Array:
    dimensions = (((1,), (int(transposed),)), NO_BATCH)
    return jax.lax.dot_general(rows, kernel, dimensions, precision=precision)


def _native_times(
    precision: Any, transposed: bool, rows: jax.Array, kernel: jax.Array
) -> jax.Array:
    if row_products.unsupported(rows, kernel) is not None:
        return _plain_times(precision, transposed, rows, kernel)
    return row_products.product(rows, kernel, transposed=transposed)


def _plain_gradient(precision: Any, rows: jax.Array, d_product: jax.Array) -> jax.Array:
    """As JAX transposes a product."""
    pixels = (((0,), (0,)), NO_BATCH)
    return jax.lax.dot_general(d_product, rows, pixels, precision=precision).T


@cache  # JAX shares traced programs by the identity of the function
def _function(
    primitive: Primitive, mapped: int, precision: Any, transposed: bool
) -> PyTreeFunction:
    """What a primitive computes, of arrays with `mapped` more axes in front."""
    plain, native = partial(_plain_gradient, precision), weight_gradients.weight_gradient
    if primitive is _times:
        plain, native = (partial(f, precision, transposed) for f in (_plain_times, _native_times))
    # A program for CPUs runs here: it is either not exported, or has plain JAX.
    function = by_platform(plain, not_exported=("cpu",), cpu=native)
    for _ in range(mapped):
        function = jax.vmap(function)
    return function


@cache
def _compiled(primitive: Primitive, **options: Any) -> PyTreeFunction:
    return jax.jit(_function(primitive, **options))


def _shape(primitive: Primitive, rows: Any, other: Any, *, transposed: bool, **options: Any) -> Any:
    del options
    if primitive is _times:
        return rows.update(shape=(*rows.shape[:-1], other.shape[-2 if transposed else -1]))
    return rows.update(shape=(*rows.shape[:-2], rows.shape[-1], other.shape[-1]))


def _batch(primitive: Primitive, arrays: Any, axes: Any, *, mapped: int, **options: Any) -> Any:
    """The rule of vmap: the batch of one array joins an axis of it, that of both is a new one."""
    bind = partial(primitive.bind, **options)
    if None not in axes:
        moved = (jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True))
        return bind(*moved, mapped=mapped + 1), 0
    which = 1 if axes[0] is None else 0
    first = primitive is _times and (which == 0 or options["transposed"])
    own, result = mapped + (0 if first else 1), mapped + which
    x = jnp.moveaxis(arrays[which], axes[which], own)
    batch, size = x.shape[own : own + 2]
    joined = list(arrays)
    joined[which] = x.reshape(*x.shape[:own], batch * size, *x.shape[own + 2 :])
    y = bind(*joined, mapped=mapped)
    return y.reshape(*y.shape[:result], batch, size, *y.shape[result + 1 :]), result


def _lower(primitive: Primitive, ctx: Any, *arrays: Any, **options: Any) -> Any:
    return mlir.lower_fun(_function(primitive, **options), multiple_results=False)(ctx, *arrays)


for _primitive in (_times, _gradient):
    _primitive.def_impl(
        lambda *arrays, primitive=_primitive, **options: _compiled(primitive, **options)(*arrays)
    )
    _primitive.def_abstract_eval(partial(_shape, _primitive))
    batching.primitive_batchers[_primitive] = partial(_batch, _primitive)
    mlir.register_lowering(_primitive, partial(_lower, _primitive))


def _other(dy: jax.Array, rows: Any, kernel: jax.Array, *, transposed: bool, **options: Any) -> Any:
    del rows
    return _times.bind(dy, kernel, transposed=not transposed, **options)


def _of_kernel(
    dy: jax.Array, rows: jax.Array, kernel: Any, *, transposed: bool, **options: Any
) -> Any:
    del kernel
    arrays = (dy, rows) if transposed else (rows, dy)
    return _gradient.bind(*arrays, transposed=False, **options)


ad.defbilinear(_times, _other, _of_kernel)
ad.defbilinear(
    _gradient,
    lambda d_kernel, rows, dy, **options: _times.bind(
        dy, d_kernel, **options | {"transposed": True}
    ),
    lambda d_kernel, rows, dy, **options: _times.bind(rows, d_kernel, **options),
)
