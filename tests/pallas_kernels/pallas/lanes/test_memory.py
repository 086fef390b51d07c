"""How floats are packed in memory and unpacked into registers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.pallas.lanes.arithmetic import Alu
from pallas_kernels.pallas.lanes.memory import Layout, deinterleave, interleave


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_deinterleave_gives_columns_and_interleave_inverts_it(size):
    x = jnp.arange(3 * size).reshape(3, size)
    columns = deinterleave(x[:, 0] if size == 1 else x)
    for i, column in enumerate(columns):
        np.testing.assert_array_equal(column, x[:, i])
    np.testing.assert_array_equal(interleave(columns).reshape(x.shape), x)


@pytest.mark.parametrize(
    ("dtype", "size", "packing"),
    [("float32", 4, 1), ("bfloat16", 8, 2), ("float16", 2, 2), ("bfloat16", 1, 1)],
)
def test_flatten_packs_pairs_of_16_bit_floats_and_unflatten_inverts_it(dtype, size, packing):
    layout = Layout(np.dtype(jnp.dtype(dtype)), size)
    x = jax.random.normal(jax.random.key(0), (2, 3, 8), dtype)
    flat = layout.flatten(x)
    assert layout.packing == packing
    assert flat.shape == (x.size // packing,)
    np.testing.assert_array_equal(layout.unflatten(flat, x.shape), x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_words_widen_and_narrow_to_the_floats_that_they_pack(dtype):
    layout = Layout(np.dtype(jnp.dtype(dtype)), 2)
    x = jax.random.normal(jax.random.key(0), (5, 2), dtype)
    words = layout.flatten(x)
    low, high = Alu(ptx=False).inline(lambda ops, word: ops.widen(word, layout.dtype), words)
    np.testing.assert_array_equal(jnp.stack([low, high], 1), x.astype(jnp.float32))
    again = Alu(ptx=False).inline(lambda ops, *x: ops.narrow(*x, layout.dtype), low, high)
    np.testing.assert_array_equal(again, words)
