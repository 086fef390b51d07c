"""Products of rows and a kernel, with what follows them; `row_products.cc` has the algorithm."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.native import calls, library

# With fewer, packing the kernel takes longer than XLA needs for all.
MIN_ROWS = 128


def unsupported(x: jax.Array, *others: jax.Array) -> str | None:
    """Why this should not run on any CPU; None if it should. Takes abstract arrays too."""
    if any(array.dtype != jnp.float32 for array in (x, *others)):
        return "it computes in float32, of float32"
    if not all(array.size for array in (x, *others)):
        return "an array is empty"
    rows = x.size // x.shape[-1]
    return None if rows >= MIN_ROWS else f"{rows} rows are fewer than {MIN_ROWS}"


def unavailable() -> str | None:
    """Why this machine cannot run it; None if it can. A program for CPUs may be run elsewhere."""
    return library.obstacle()


def product(x: jax.Array, kernel: jax.Array, *, transposed: bool = False) -> jax.Array:
    """(P, K) @ (K, N), float32.

    Args:
      x: (P, K).
      kernel: (K, N), or (N, K) if it is transposed.
      transposed: whether it is, as for the gradient of the rows.
    """
    return _product((x, kernel), transposed=transposed, relu=False)


def normalized_product(
    x: jax.Array,
    kernel: jax.Array,
    gain: jax.Array,
    offset: jax.Array,
    residual: jax.Array | None = None,
    *,
    relu: bool,
) -> jax.Array:
    """(x @ kernel) * gain + offset + residual, through a ReLU if one follows, float32.

    Args:
      x: (P, K).
      kernel: (K, N).
      gain: (N,).
      offset: (N,).
      residual: (P, N), or None for none.
      relu: whether a ReLU follows.
    """
    more = () if residual is None else (residual,)
    return _product((x, kernel, gain, offset, *more), transposed=False, relu=relu)


def _product(arrays: tuple[jax.Array, ...], *, transposed: bool, relu: bool) -> jax.Array:
    rows, depth = arrays[0].shape
    columns = arrays[1].shape[0 if transposed else 1]
    sizes = rows, depth, columns
    memory = calls.float32_shape((library.packed_kernel(sizes),))
    results = calls.float32_shape((rows, columns)), memory
    call = jax.ffi.ffi_call(library.ROW_PRODUCT, results, vmap_method="sequential")
    out, _ = call(*arrays, sizes=np.array(sizes, np.int64), transposed=transposed, relu=relu)
    return out
