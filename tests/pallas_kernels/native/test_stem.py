"""The first layer in C++: float64, instruction sets, threads, vmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.native import library, stem
from tests.pallas_kernels.native.test_native import instruction_sets, needs_library, use
from tests.pallas_kernels.pallas.stem.stem_problems import STEMS, StemProblem, faults

__all__ = ["use"]  # a fixture

PROBLEMS = {
    **STEMS,
    # More keys than a block of sums, and two bands of rows that begin between queries.
    "bands": StemProblem(2, 37, 19, 2, 21, 11, 13, 1, 3),
}


@functools.cache
def program(stride):
    """All results, as a program that other instruction sets and numbers of threads share."""

    def run(inputs, d_maps):
        return stem.forward(inputs, stride), stem.backward(inputs, d_maps, stride)

    return jax.jit(run)


def results(name):
    return program(PROBLEMS[name].stride)(*PROBLEMS[name].arrays(jnp.float32))


@needs_library
@pytest.mark.parametrize("instruction_set", instruction_sets)
@pytest.mark.parametrize("name", PROBLEMS)
def test_against_float64(name, instruction_set, use):
    use(instruction_set)
    assert not faults(PROBLEMS[name], jnp.float32, *results(name))


@needs_library
def test_threads_make_no_difference(use):
    found = []
    for threads in (1, 2, library.ALL_THREADS):
        use(instruction_sets[0], threads)
        found.append(jax.tree.leaves(results("bands")))
    for others in found[1:]:
        for a, b in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(a, b)


@needs_library
def test_vmap():
    inputs, d_maps = PROBLEMS["ghost"].arrays(jnp.float32)
    stacked = jax.tree.map(lambda x: jnp.stack([x[::-1], x]), (inputs, d_maps))
    both = jax.vmap(program(2))(*stacked)
    for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(results("ghost")), strict=True):
        np.testing.assert_array_equal(a[1], b)


@needs_library
def test_nan_and_infinity_stay_in_their_pixel():
    problem = PROBLEMS["grey"]
    inputs, d_maps = problem.arrays(jnp.float32)
    bad = inputs._replace(x=inputs.x.at[0, 2, 3].set(jnp.nan).at[1, 4, 1].set(jnp.inf))
    clean, _ = program(1)(inputs, d_maps)
    maps, _ = program(1)(bad, d_maps)
    for a, b in zip(maps, clean, strict=True):
        assert np.isnan(a[0, 2, 3]).all()
        assert not np.isfinite(a[1, 4, 1]).all()
        np.testing.assert_array_equal(
            np.delete(np.asarray(a).reshape(84, -1), (15, 67), 0),
            np.delete(np.asarray(b).reshape(84, -1), (15, 67), 0),
        )


def test_unsupported():
    inputs, _ = PROBLEMS["wide"].arrays(jnp.float32)
    assert stem.unsupported(inputs) is None
    narrow = inputs._replace(x=inputs.x.astype(jnp.bfloat16))
    assert stem.unsupported(narrow) == "it computes in float32, of float32"
    many = inputs._replace(x=jnp.zeros((1, 2, 2, 5)))
    assert stem.unsupported(many) == "images have 5 channels, more than 4"
