"""Gradients of kernels in C++: float64, instruction sets, threads, vmap, what is not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.native import library, weight_gradients
from tests.pallas_kernels.native.test_native import instruction_sets, needs_library, use

__all__ = ["use"]  # a fixture

SHAPES = {  # pixels, inputs, outputs
    "pieces": (8200, 101, 26),  # 2 pieces of the pixels, the last block of pixels is not full
    "blocks": (130, 520, 515),  # 2 times 2 blocks of the kernel, on any number of cores
    "vectors": (256, 64, 48),
    "narrow": (40, 3, 5),  # fewer outputs than lanes
    "pixel": (1, 13, 1),
}


def arrays(name):
    pixels, inputs, outputs = SHAPES[name]
    rng = np.random.default_rng(0)
    shapes = (pixels, inputs), (pixels, outputs)
    return [rng.normal(0.5, 1, shape).astype(np.float32) for shape in shapes]


@functools.cache
def program():
    """Shared by instruction sets and numbers of threads."""
    return jax.jit(weight_gradients.weight_gradient)


def expected(x, gradient):
    return x.astype(np.float64).T @ gradient.astype(np.float64)


def rounding(x, gradient):
    """What float32 may lose of a sum over a block of pixels, and then over the blocks."""
    terms = 128 + len(x) / 128
    return 2.0**-24 * terms * (np.abs(x).T.astype(np.float64) @ np.abs(gradient))


@needs_library
@pytest.mark.parametrize("instruction_set", instruction_sets)
@pytest.mark.parametrize("name", SHAPES)
def test_against_float64(name, instruction_set, use):
    use(instruction_set)
    x, gradient = arrays(name)
    error = np.abs(program()(x, gradient) - expected(x, gradient))
    assert (error <= rounding(x, gradient)).all()


@needs_library
@pytest.mark.parametrize("name", ["pieces", "blocks"])
def test_threads_and_blocks_make_no_difference(name, use, monkeypatch):
    """Blocks of the kernel are cut for the cores that there are."""
    found = []
    for cores, threads in ((1, 1), (2, 2), (16, 3), (16, library.ALL_THREADS)):
        use(instruction_sets[0], threads)
        monkeypatch.setattr(weight_gradients.calls, "cores", lambda cores=cores: cores)
        jax.clear_caches()
        found.append(jax.jit(weight_gradients.weight_gradient)(*arrays(name)))
    for others in found[1:]:
        np.testing.assert_array_equal(found[0], others)


@needs_library
def test_the_kernel_is_cut_until_all_threads_have_work():
    for threads, tasks in ((1, 2), (4, 4), (6, 8), (17, 18)):
        plan = library.weight_plan((8192, 512, 404), threads)
        assert plan.pieces * plan.input_blocks * plan.output_blocks == tasks
        assert plan.pieces == 2
    few = library.weight_plan((49, 3, 5), 64)
    assert (few.pieces, few.input_blocks, few.output_blocks) == (1, 1, 1)


@needs_library
def test_vmap():
    stacked = [jnp.stack([a[::-1], a]) for a in arrays("narrow")]
    both = jax.vmap(program())(*stacked)
    np.testing.assert_array_equal(both[1], program()(*arrays("narrow")))


@needs_library
@pytest.mark.parametrize("name", ["pieces", "narrow"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_channel(name, bad):
    for which in (0, 1):
        operands = arrays(name)
        clean = program()(*operands)
        operands[which][-1, -1] = bad
        found = np.array(program()(*operands))
        own = np.moveaxis(found, which, 0)
        assert not np.isfinite(own[-1]).any()
        np.testing.assert_array_equal(own[:-1], np.moveaxis(np.array(clean), which, 0)[:-1])


def test_unsupported():
    x, gradient = arrays("narrow")
    assert weight_gradients.unsupported(x, gradient) is None
    half = gradient.astype(np.float16)
    assert weight_gradients.unsupported(x, half) == "it computes in float32, of float32"
    assert weight_gradients.unsupported(x[:0], gradient[:0]) == "an array is empty"
