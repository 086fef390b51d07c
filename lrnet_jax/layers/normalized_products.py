"""A matrix product with what evaluation does next: normalisation, residual sum and ReLU.

On a CPU `pallas_kernels/native/row_products.cc` computes all of it while the product is in
registers. Elsewhere, and where it is differentiated, plain JAX computes one after the other. The
platform is chosen when the program is lowered.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lrnet_jax.layers.activation import relu as rectified
from lrnet_jax.layers.batch_norm import affine_relu
from lrnet_jax.layers.channel_means import affine
from lrnet_jax.layers.kept import keep
from lrnet_jax.layers.matrix_products import is_sharded, product
from pallas_kernels.native import row_products
from pallas_kernels.platform_switch import PyTreeFunction, by_platform


def in_one_pass(*arrays: jax.Array) -> bool:
    """Whether `normalized_product` is one pass over these arrays on a CPU here."""
    supported = row_products.unsupported(*arrays) is None and not is_sharded(*arrays)
    return supported and row_products.unavailable() is None


def normalized_product(
    relu: bool,
    x: jax.Array,
    kernel: jax.Array,
    gain: jax.Array,
    offset: jax.Array,
    residual: jax.Array | None = None,
) -> jax.Array:
    """(x @ kernel) * gain + offset, or relu((x @ kernel) * gain + offset + residual).

    Args:
      relu: whether a ReLU follows; with a residual it does.
      x: (..., K), for which `in_one_pass` is true, as for all arrays.
      kernel: (K, N).
      gain: (N,).
      offset: (N,).
      residual: (..., N), or None for none.

    Returns:
      (..., N) float32. It is differentiable in all arrays, in both modes.
    """
    more = () if residual is None else (residual,)
    # The program is traced when it is lowered, and the precision may be another one by then.
    options = relu, jax.config.jax_default_matmul_precision
    return _product(options, (x, kernel, gain, offset, *more))


_Options = tuple[bool, Any]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(options: _Options, arrays: tuple[jax.Array, ...]) -> jax.Array:
    return _switched(options)(*arrays)


@_product.defjvp
def _product_jvp(
    options: _Options,
    primals: tuple[tuple[jax.Array, ...]],
    tangents: tuple[tuple[jax.Array, ...]],
) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(functools.partial(_plain, options), *primals, *tangents)


@functools.cache  # JAX shares traced programs by the identity of the function
def _switched(options: _Options) -> PyTreeFunction:
    plain, native = (functools.partial(f, options) for f in (_plain, _native))
    # A program for CPUs runs here: it is either not exported, or has plain JAX.
    return by_platform(plain, shapes=_shapes, not_exported=("cpu",), cpu=native)


def _shapes(x: jax.Array, kernel: jax.Array, *others: jax.Array) -> jax.Array:
    del others
    return jnp.zeros((*x.shape[:-1], kernel.shape[1]))


def _native(
    options: _Options,
    x: jax.Array,
    kernel: jax.Array,
    gain: jax.Array,
    offset: jax.Array,
    *residual: jax.Array,
) -> jax.Array:
    more = (array.reshape(-1, array.shape[-1]) for array in residual)
    rows = x.reshape(-1, x.shape[-1])
    y = row_products.normalized_product(rows, kernel, gain, offset, *more, relu=options[0])
    return y.reshape(*x.shape[:-1], -1)


def _plain(
    options: _Options,
    x: jax.Array,
    kernel: jax.Array,
    gain: jax.Array,
    offset: jax.Array,
    *residual: jax.Array,
) -> jax.Array:
    relu, precision = options
    with jax.default_matmul_precision(precision):
        rows = product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)
    if residual:
        with jax.named_scope("batch_norm"):
            normalized = affine(x.dtype, rows, gain, offset)
        return rectified(normalized + residual[0])
    with jax.named_scope("batch_norm"):
        return (affine_relu if relu else affine)(x.dtype, keep(rows), gain, offset)
