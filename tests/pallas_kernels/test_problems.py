"""Every implementation against the reference: odd and random problems, extreme inputs, dtypes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import implementations, local_relation
from pallas_kernels.spec import NORMALIZATIONS, SIMILARITIES, Spec
from pallas_kernels.tools.comparison import RESULTS, errors
from pallas_kernels.tools.shapes import ODD, Shape, make_cotangent, make_inputs
from tests.pallas_kernels.under_test import (
    assert_close,
    each_implementation,
    run,
    skip_unsupported,
)

SMALL = Shape("small", 6, 7, 6, Spec((3, 5), 4))
# The reference is what the others are compared with.
others = pytest.mark.parametrize("implementation", each_implementation("reference"))


def assert_equals_reference(shape, implementation):
    """In float64, or within the budget of float32 where float64 is not supported."""
    with jax.enable_x64(True):
        inputs, cotangent = make_inputs(shape, "float64"), make_cotangent(shape, "float64")
        if implementations(*inputs, **shape.options)[implementation].runs:
            want = run(shape, "reference", inputs, cotangent)
            # Sums of at most some thousand normal numbers and products of two.
            assert_close(run(shape, implementation, inputs, cotangent), want, 1e-12)
            return
    skip_unsupported(implementation, make_inputs(shape), shape.options)

    @jax.jit
    def results(*arrays):
        def function(*inputs):
            return local_relation(*inputs, **shape.options, implementation=implementation)

        out, vjp = jax.vjp(function, *arrays[:4])
        return out, *vjp(arrays[4])

    for error in errors(shape, jnp.dtype("float32"), results):
        assert error.ok, error


@pytest.mark.slow
@others
@pytest.mark.parametrize("shape", ODD, ids=lambda shape: shape.name)
def test_odd_shapes(shape, implementation):
    assert_equals_reference(shape, implementation)


def problems(largest_kernel, largest_size):
    """Every option at random."""
    kernels = st.integers(0, largest_kernel // 2).map(lambda half: 2 * half + 1)
    specs = st.builds(
        Spec,
        kernel_size=st.tuples(kernels, kernels),
        channels_per_group=st.integers(1, 5),
        stride=st.integers(1, 3),
        dilation=st.integers(1, 3),
        similarity=st.sampled_from(SIMILARITIES),
        scale=st.sampled_from([1.0, 0.5, -0.3]),
        normalization=st.sampled_from(NORMALIZATIONS),
    )
    sizes = st.integers(1, largest_size)
    return st.builds(
        Shape,
        name=st.just("random"),
        height=sizes,
        width=sizes,
        channels=st.integers(1, 9),
        spec=specs,
        batch=st.integers(1, 2),
        depth=st.integers(1, 3),
        has_prior=st.booleans(),
    )


@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(shape=problems(largest_kernel=3, largest_size=7))
@others
def test_random_problems(shape, implementation):
    assert_equals_reference(shape, implementation)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(shape=problems(largest_kernel=7, largest_size=12))
@others
def test_random_problems_at_length(shape, implementation):
    assert_equals_reference(shape, implementation)


@others
@pytest.mark.parametrize("extreme", ["far", "prior", "outside", "masked", "equal"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_extreme_inputs(similarity, extreme, implementation):
    """Whole numbers: logits of 1e6 are exact in float32, so weights must be too."""
    shape = dataclasses.replace(SMALL, spec=dataclasses.replace(SMALL.spec, similarity=similarity))
    rng = np.random.default_rng(0)
    query, key, value, prior = (np.array(x) for x in make_inputs(shape))
    query, key, prior = (np.round(x) for x in (query, key, prior))
    if extreme == "far":  # |q - k| of 1e3, with near ties: rounding must not touch the weights
        query, key = query + 1000, np.round(key) + rng.integers(0, 2, key.shape)
    elif extreme == "prior":
        prior = rng.integers(-3, 4, prior.shape) * 1e6
    elif extreme == "outside":  # the largest logits belong to taps outside the image
        prior[:, 0, :] = prior[:, :, -1] = 1e5
    elif extreme == "masked":
        prior = np.where(rng.random(prior.shape) < 0.5, -1e30, prior)
        prior[:, 1, 2] = 0
    else:
        query, key, prior = (np.zeros_like(x) for x in (query, key, prior))
    arrays = [jnp.asarray(x, jnp.float32) for x in (query, key, value, prior)]
    cotangent = make_cotangent(shape)
    want = run(shape, "reference", arrays, cotangent)
    # Gradients are sums of up to 210 terms, each the size of the largest query or key.
    tolerance = 3e-5 * max(1, np.abs(query).max(), np.abs(key).max())
    got = run(shape, implementation, arrays, cotangent)
    for name, limit in zip(RESULTS, (3e-6, tolerance, tolerance, 3e-5, 3e-5), strict=True):
        assert_close({name: got[name]}, {name: want[name]}, limit)


@others
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(dtype, implementation):
    """Errs at most twice as much as the reference in the same dtype."""
    shape = Shape("low", 12, 14, 20, Spec((3, 3), 8))
    inputs, cotangent = make_inputs(shape, dtype), make_cotangent(shape, dtype)
    with jax.enable_x64(True):  # the truth for the rounded inputs: counts our rounding alone
        exact = [np.asarray(x, np.float64) for x in inputs]
        truth = run(shape, "reference", exact, np.asarray(cotangent, np.float64))
    reference = run(shape, "reference", inputs, cotangent)
    low = run(shape, implementation, inputs, cotangent)
    for name in RESULTS:
        scale = np.abs(truth[name]).max()
        ours, theirs = (np.sqrt(np.mean((x[name] - truth[name]) ** 2)) for x in (low, reference))
        assert ours <= 2 * theirs, f"{name}: {ours / scale:.3g} > 2 * {theirs / scale:.3g}"


@pytest.mark.parametrize("implementation", each_implementation())
def test_repeats_bit_for_bit(implementation):
    shape = Shape("blocks", 40, 41, 130, Spec((3, 3), 8))
    inputs, cotangent = make_inputs(shape), make_cotangent(shape)
    first, second = (run(shape, implementation, inputs, cotangent) for _ in range(2))
    for name in RESULTS:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
