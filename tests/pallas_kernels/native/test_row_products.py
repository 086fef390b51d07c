"""Products of rows and a kernel in C++: float64, instruction sets, threads, vmap, not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.native import library, row_products
from tests.pallas_kernels.native.test_native import instruction_sets, needs_library, use

__all__ = ["use"]  # a fixture

SHAPES = {  # rows, depth, columns
    "panels": (53, 37, 213),  # panels of 3 and 4 vectors of 16, and an overlap
    "blocks": (301, 403, 101),  # 3 blocks of rows
    "deep": (30, 2100, 52),  # cut by columns too
    "narrow": (27, 11, 3),  # fewer columns than lanes
    "number": (1, 1, 1),
}


def arrays(name, dtype=np.float32):
    """x, kernel, gain, offset and residual."""
    (rows, depth, columns), rng = SHAPES[name], np.random.default_rng(0)
    shapes = (rows, depth), (depth, columns), (columns,), (columns,), (rows, columns)
    return [rng.normal(size=s).astype(np.float32).astype(dtype) for s in shapes]


@functools.cache
def programs():
    """Each kind of product, as programs that other instruction sets and threads share."""

    def all_kinds(x, kernel, gain, offset, residual):
        normalized = functools.partial(row_products.normalized_product, x, kernel, gain, offset)
        return {
            "plain": row_products.product(x, kernel),
            "transposed": row_products.product(x, kernel.T, transposed=True),
            "normalized": normalized(relu=False),
            "relu": normalized(relu=True),
            "residual": normalized(residual, relu=True),
        }

    return jax.jit(all_kinds)


def expected(x, kernel, gain, offset, residual):
    with np.errstate(invalid="ignore"):
        plain = x @ kernel
        normalized = plain * gain + offset
        return {
            "plain": plain,
            "transposed": plain,
            "normalized": normalized,
            "relu": np.maximum(normalized, 0),
            "residual": np.maximum(normalized + residual, 0),
        }


@needs_library
@pytest.mark.parametrize("instruction_set", instruction_sets)
@pytest.mark.parametrize("name", SHAPES)
def test_against_float64(name, instruction_set, use):
    use(instruction_set)
    found, want = programs()(*arrays(name)), expected(*arrays(name, np.float64))
    for kind, a in found.items():
        bound = 2e-6 * np.abs(want[kind]).max()
        np.testing.assert_allclose(a, want[kind], rtol=0, atol=bound, err_msg=kind)


@needs_library
@pytest.mark.parametrize("name", ["blocks", "deep"])
def test_threads_make_no_difference(name, use):
    found = []
    for threads in (1, 2, library.ALL_THREADS):
        use(instruction_sets[0], threads)
        found.append(programs()(*arrays(name)))
    for others in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], others)


@needs_library
def test_vmap():
    stacked = [jnp.stack([a[::-1], a]) for a in arrays("narrow")]
    both = jax.vmap(programs())(*stacked)
    alone = programs()(*arrays("narrow"))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), both, alone)


@needs_library
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["row", "column"])
def test_what_is_not_finite_stays_in_its_row_or_column(where, bad):
    clean, spoilt = arrays("blocks"), arrays("blocks")
    if where == "row":
        spoilt[0][299, 5] = bad
    else:
        spoilt[1][7, 90] = bad  # in the last vector and the one before it
    found, before = programs()(*spoilt), programs()(*clean)
    want = expected(*(a.astype(np.float64) for a in spoilt))
    for kind, a in found.items():
        touched = np.zeros(a.shape, bool)
        touched[299 if where == "row" else slice(None), slice(None) if where == "row" else 90] = 1
        np.testing.assert_array_equal(a[~touched], before[kind][~touched])
        np.testing.assert_array_equal(np.isnan(a), np.isnan(want[kind]), err_msg=kind)
        finite = np.where(np.isinf(want[kind]), want[kind], 0)
        np.testing.assert_array_equal(np.where(np.isinf(a), a, 0), finite, err_msg=kind)


def test_unsupported():
    x, kernel, *_ = arrays("blocks")
    assert row_products.unsupported(x, kernel) is None
    assert row_products.unsupported(x.reshape(7, 43, -1), kernel) is None
    assert row_products.unsupported(x, kernel.astype(np.float16)) == (
        "it computes in float32, of float32"
    )
    assert row_products.unsupported(x[:0], kernel) == "an array is empty"
    assert row_products.unsupported(x[:127], kernel) == "127 rows are fewer than 128"
