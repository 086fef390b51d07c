"""Means over pixels in C++: float64, instruction sets, threads, vmap, what is not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.native import channel_sums, library
from tests.pallas_kernels.native.test_native import instruction_sets, needs_library, use

__all__ = ["use"]  # a fixture

SHAPES = {
    "pieces": (2, 37, 89, 101),  # 2 pieces of a group, whole vectors and 5 channels
    "wide": (1, 3, 2, 48),
    "narrow": (3, 5, 3, 3),  # fewer channels than lanes
    "pixel": (2, 1, 1, 17),
}


def arrays(name, dtype=np.float32):
    """x, gradient, gain and offset; a multiple of a quarter has the same sign in every dtype."""
    shape, rng = SHAPES[name], np.random.default_rng(0)
    parameters = shape[0], shape[3]
    shapes = (shape, shape, parameters, parameters)
    return [(np.round(4 * rng.normal(0.5, 1, s)) / 4).astype(dtype) for s in shapes]


@functools.cache
def program(relu):
    """All means, as a program that other instruction sets and numbers of threads share."""

    def run(x, gradient, gain, offset):
        pivot = gain[0]
        products = channel_sums.products(x, gradient, gain, offset, relu=relu)
        return *channel_sums.moments(x, pivot), *products

    return jax.jit(run)


def expected(x, gradient, gain, offset, relu):
    centred = x - gain[0]
    if relu:
        gradient = np.where(x * gain[:, None, None] + offset[:, None, None] > 0, gradient, 0)
    with np.errstate(invalid="ignore"):
        return [a.mean((1, 2)) for a in (centred, centred**2, gradient, gradient * x)]


@needs_library
@pytest.mark.parametrize("instruction_set", instruction_sets)
@pytest.mark.parametrize("name", SHAPES)
def test_against_float64(name, instruction_set, use):
    use(instruction_set)
    for relu in (False, True):
        want = expected(*arrays(name, np.float64), relu)
        for a, b in zip(program(relu)(*arrays(name)), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())


@needs_library
def test_threads_make_no_difference(use):
    x = np.random.default_rng(1).normal(size=SHAPES["pieces"]).astype(np.float32)
    found = []
    for threads in (1, 2, library.ALL_THREADS):
        use(instruction_sets[0], threads)
        found.append(program(True)(x, *arrays("pieces")[1:]))
    for others in found[1:]:
        for a, b in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(a, b)


@needs_library
def test_vmap():
    stacked = [jnp.stack([a[::-1], a]) for a in arrays("narrow")]
    both = jax.vmap(program(True))(*stacked)
    for a, b in zip(both, program(True)(*arrays("narrow")), strict=True):
        np.testing.assert_array_equal(a[1], b)


@needs_library
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_channel(bad):
    """And in its group. A gradient that the ReLU stops is 0 times what is not finite."""
    x, gradient, gain, offset = arrays("pieces")
    spoilt = x.copy()
    spoilt[1, 30, 7, 100] = bad
    clean = program(True)(x, gradient, gain, offset)
    found = program(True)(spoilt, gradient, gain, offset)
    want = expected(*(a.astype(np.float64) for a in (spoilt, gradient, gain, offset)), relu=True)
    for a, b, c in zip(found, clean, want, strict=True):
        changed = np.argwhere(np.asarray(a) != np.asarray(b))
        assert all(tuple(place) == (1, 100) for place in changed)
        np.testing.assert_allclose(a[1, 100], c[1, 100], rtol=1e-6, atol=1e-3)
    assert not np.isfinite([found[0][1, 100], found[1][1, 100]]).any()


def test_unsupported():
    x, *_ = arrays("wide")
    assert channel_sums.unsupported(x) is None
    assert channel_sums.unsupported(x, x.astype(np.float16)) == "it computes in float32, of float32"
    assert channel_sums.unsupported(x[:0]) == "an array is empty"
