"""Products of pixels with a kernel; on a CPU the gradient of the kernel is C++.

That gradient is a sum over pixels. XLA:CPU has it transpose both operands first, and takes a half
longer for it than for the product. `pallas_kernels/native/weight_gradients.cc` does not, where the
library is there. The product and the gradient of the pixels are XLA's everywhere. The platform is
chosen when the program is lowered, and other platforms have the program of `jnp.dot`.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from pallas_kernels.native import weight_gradients
from pallas_kernels.platform_switch import PyTreeFunction, by_platform, vary_alike

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
    sharded = any(jax.typeof(x).sharding.spec.count(None) < x.ndim for x in (rows, kernel))
    supported = weight_gradients.unsupported(rows, kernel) is None and not sharded
    return supported and weight_gradients.unavailable() is None


@jax.custom_jvp
def _product(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.dot(rows, kernel)


@partial(_product.defjvp, symbolic_zeros=True)
def _product_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (rows, kernel), (d_rows, d_kernel) = primals, tangents
    y = jnp.dot(rows, kernel)
    parts = []
    if not isinstance(d_rows, SymbolicZero):
        parts.append(jnp.dot(d_rows, kernel))
    if not isinstance(d_kernel, SymbolicZero):
        # The program is traced when it is lowered, and the precision may be another one by then.
        precision = jax.config.jax_default_matmul_precision
        parts.append(_tangent.bind(*vary_alike((rows, d_kernel)), mapped=0, precision=precision))
    return y, sum(parts[1:], start=parts[0]) if parts else jnp.zeros_like(y)


# Layers of equal shapes share the program and its derivatives. It leaves no trace in programs.
_traced_once = jax.jit(_product, inline=True)

# Of rows and a kernel: the product, as a linear map of the kernel. Its transpose is _gradient.
_tangent = Primitive("lrnet_kernel_tangent")
# Of rows and what is like the product: the gradient of the kernel.
_gradient = Primitive("lrnet_kernel_gradient")


def _plain_tangent(precision: Any, rows: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.dot(rows, kernel, precision=precision)


def _plain_gradient(precision: Any, rows: jax.Array, d_product: jax.Array) -> jax.Array:
    """As JAX transposes a product."""
    pixels = (((0,), (0,)), NO_BATCH)
    return jax.lax.dot_general(d_product, rows, pixels, precision=precision).T


@cache  # JAX shares traced programs by the identity of the function
def _function(primitive: Primitive, mapped: int, precision: Any) -> PyTreeFunction:
    """What a primitive computes, of arrays with `mapped` more axes in front."""
    if primitive is _tangent:
        function: PyTreeFunction = partial(_plain_tangent, precision)
    else:
        # A program for CPUs runs here: it is either not exported, or has plain JAX.
        function = by_platform(
            partial(_plain_gradient, precision),
            not_exported=("cpu",),
            cpu=weight_gradients.weight_gradient,
        )
    for _ in range(mapped):
        function = jax.vmap(function)
    return function


@cache
def _compiled(primitive: Primitive, mapped: int, precision: Any) -> PyTreeFunction:
    return jax.jit(_function(primitive, mapped, precision))


def _shape(primitive: Primitive, rows: Any, other: Any, **options: Any) -> Any:
    del options
    first = rows.shape[:-1] if primitive is _tangent else (*rows.shape[:-2], rows.shape[-1])
    return rows.update(shape=(*first, other.shape[-1]))


def _transposed(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def _batch(primitive: Primitive, arrays: Any, axes: Any, *, mapped: int, precision: Any) -> Any:
    """The rule of vmap: the batch of one array joins an axis of it, that of both is a new one."""
    bind = partial(primitive.bind, precision=precision)
    if None not in axes:
        moved = (jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True))
        return bind(*moved, mapped=mapped + 1), 0
    which = 1 if axes[0] is None else 0
    own, result = mapped + (which if primitive is _tangent else 1), mapped + which
    x = jnp.moveaxis(arrays[which], axes[which], own)
    batch, size = x.shape[own : own + 2]
    joined = list(arrays)
    joined[which] = x.reshape(*x.shape[:own], batch * size, *x.shape[own + 2 :])
    y = bind(*joined, mapped=mapped)
    return y.reshape(*y.shape[:result], batch, size, *y.shape[result + 1 :]), result


def _lower(primitive: Primitive, ctx: Any, *arrays: Any, **options: Any) -> Any:
    return mlir.lower_fun(_function(primitive, **options), multiple_results=False)(ctx, *arrays)


for _primitive in (_tangent, _gradient):
    _primitive.def_impl(
        lambda *arrays, primitive=_primitive, **options: _compiled(primitive, **options)(*arrays)
    )
    _primitive.def_abstract_eval(partial(_shape, _primitive))
    batching.primitive_batchers[_primitive] = partial(_batch, _primitive)
    mlir.register_lowering(_primitive, partial(_lower, _primitive))

ad.defbilinear(
    _tangent,
    lambda dy, rows, kernel, **_: dy @ _transposed(kernel),
    lambda dy, rows, kernel, **options: _gradient.bind(rows, dy, **options),
)
ad.defbilinear(
    _gradient,
    lambda d_kernel, rows, dy, **_: dy @ _transposed(d_kernel),
    lambda d_kernel, rows, dy, **options: _tangent.bind(rows, d_kernel, **options),
)
