"""The XLA path against the reference: random problems, extremes, memory, transformations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from pallas_kernels import local_relation
from pallas_kernels.spec import NORMALIZATIONS, SIMILARITIES, Spec
from pallas_kernels.tools.comparison import reference_results
from pallas_kernels.tools.shapes import ODD, SHAPES, Shape, make_cotangent, make_inputs
from pallas_kernels.tools.timing import prepare

NAMES = ("out", "d_query", "d_key", "d_value", "d_prior")
SMALL = Shape("small", 6, 7, 6, Spec((3, 5), 4))


@functools.cache
def compiled(shape, implementation):
    """Output and gradients as one program: operation by operation they compile ten times longer."""

    def results(cotangent, *arrays):
        function = functools.partial(local_relation, **shape.options, implementation=implementation)
        out, vjp = jax.vjp(function, *arrays)
        return out, *vjp(cotangent)

    return jax.jit(results)


def run(shape, implementation, arrays, cotangent):
    """Output and gradients, keyed by name, as float64 numpy arrays."""
    arrays = [array for array in arrays if array is not None]
    results = compiled(shape, implementation)(cotangent, *arrays)
    for result, like in zip(results, (arrays[2], *arrays), strict=True):
        assert result.dtype == like.dtype
    return {
        name: np.asarray(result, np.float64) for name, result in zip(NAMES, results, strict=False)
    }


def assert_close(got, want, tolerance):
    assert got.keys() == want.keys()
    for name in got:
        assert np.isfinite(got[name]).all(), name
        error = np.abs(got[name] - want[name]).max()
        limit = tolerance * max(1, np.abs(want[name]).max())
        assert error <= limit, f"{name}: error {error:.3g} > {limit:.3g}"


def assert_equals_reference(shape):
    # Sums of at most some thousand normal numbers and products of two.
    with jax.enable_x64(True):
        inputs, cotangent = make_inputs(shape, "float64"), make_cotangent(shape, "float64")
        want = run(shape, "reference", inputs, cotangent)
        assert_close(run(shape, "xla", inputs, cotangent), want, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ODD, ids=lambda shape: shape.name)
def test_odd_shapes(shape):
    assert_equals_reference(shape)


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
@given(problems(largest_kernel=3, largest_size=7))
def test_random_problems(shape):
    assert_equals_reference(shape)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(problems(largest_kernel=7, largest_size=12))
def test_random_problems_at_length(shape):
    assert_equals_reference(shape)


def test_many_blocks():
    """Images cut into blocks of rows, the last one ragged, with stride and dilation."""
    spec = Spec((3, 3), 8, stride=2, dilation=2)
    assert_equals_reference(Shape("blocks", 95, 181, 130, spec))


@pytest.mark.parametrize("extreme", ["far", "prior", "outside", "masked", "equal"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_extreme_inputs(similarity, extreme):
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
    got = run(shape, "xla", arrays, cotangent)
    for name, limit in zip(NAMES, (3e-6, tolerance, tolerance, 3e-5, 3e-5), strict=True):
        assert_close({name: got[name]}, {name: want[name]}, limit)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize(
    ("spec", "depth"),
    [
        (Spec((3, 3), 2), 1),
        (Spec((3, 1), 2, stride=2, similarity="absolute_difference", scale=0.7), 2),
        (Spec((1, 3), 3, dilation=2, similarity="multiplication", normalization="none"), 1),
    ],
    ids=["squared", "absolute", "multiplication"],
)
def test_numerical_gradients(spec, depth, implementation):
    shape = Shape("numerical", 4, 3, 3, spec, depth=depth)
    with jax.enable_x64(True):
        function = functools.partial(local_relation, **shape.options, implementation=implementation)
        check_grads(function, make_inputs(shape, "float64"), order=1, modes=["rev"], eps=1e-5)


def test_gradient_of_a_subset():
    inputs, cotangent = make_inputs(SMALL), make_cotangent(SMALL)
    want = run(SMALL, "xla", inputs, cotangent)

    def loss(*arrays):
        out = local_relation(*arrays, **SMALL.options, implementation="xla")
        return jnp.vdot(out, cotangent)

    for i, name in ((2, "d_value"), (3, "d_prior")):
        got = jax.jit(jax.grad(loss, argnums=i))(*inputs)
        assert_close({name: np.asarray(got)}, {name: want[name]}, 1e-6)


@pytest.mark.parametrize("implementation", ["reference", "xla", "pallas_interpret", None])
def test_shard_map(implementation):
    """Two images on two devices; the prior is the same on both, so its gradient is a sum."""
    shape = Shape("sharded", 4, 5, 4, Spec((3, 3), 4), batch=2)
    inputs, d_out = make_inputs(shape), make_cotangent(shape)

    def results(*arrays):
        def run(*inputs):
            return local_relation(*inputs, **shape.options, implementation=implementation)

        out, vjp = jax.vjp(run, *arrays[:4])
        return out, *vjp(arrays[4])

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), "batch")
    rows, whole = jax.P("batch"), jax.P()
    sharded = jax.shard_map(
        results,
        mesh=mesh,
        in_specs=(rows, rows, rows, whole, rows),
        out_specs=(rows, rows, rows, rows, whole),
    )
    got = jax.jit(sharded)(*inputs, d_out)
    want = reference_results(shape, inputs, d_out)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_vmap():
    """Extra leading axes, one array shared, equal a loop; gradients too."""
    stacked = [
        jnp.stack(x) for x in zip(*(make_inputs(SMALL, seed=i) for i in (0, 1)), strict=True)
    ]
    prior = stacked[3][0]
    cotangent = make_cotangent(SMALL)

    def results(query, key, value):
        out, vjp = jax.vjp(
            functools.partial(local_relation, **SMALL.options, implementation="xla"),
            query,
            key,
            value,
            prior,
        )
        return out, *vjp(cotangent)

    got = jax.jit(jax.vmap(results))(*stacked[:3])
    for i in (0, 1):
        want = results(*(x[i] for x in stacked[:3]))
        for name, a, b in zip(NAMES, got, want, strict=True):
            assert_close({name: np.asarray(a[i])}, {name: np.asarray(b)}, 1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(dtype):
    """Errs at most twice as much as the reference in the same dtype."""
    shape = Shape("low", 12, 14, 20, Spec((3, 3), 8))
    inputs, cotangent = make_inputs(shape, dtype), make_cotangent(shape, dtype)
    with jax.enable_x64(True):  # the truth for the rounded inputs: counts our rounding alone
        exact = [np.asarray(x, np.float64) for x in inputs]
        truth = run(shape, "reference", exact, np.asarray(cotangent, np.float64))
    reference = run(shape, "reference", inputs, cotangent)
    xla = run(shape, "xla", inputs, cotangent)
    for name in NAMES:
        scale = np.abs(truth[name]).max()
        ours, theirs = (np.sqrt(np.mean((x[name] - truth[name]) ** 2)) for x in (xla, reference))
        assert ours <= 2 * theirs, f"{name}: {ours / scale:.3g} > 2 * {theirs / scale:.3g}"


def test_repeats_bit_for_bit():
    shape = Shape("blocks", 40, 41, 130, Spec((3, 3), 8))
    inputs, cotangent = make_inputs(shape), make_cotangent(shape)
    first, second = (run(shape, "xla", inputs, cotangent) for _ in range(2))
    for name in NAMES:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def with_gradients(shape, implementation):
    function = functools.partial(local_relation, **shape.options, implementation=implementation)

    def run(cotangent, *arrays):
        out, vjp = jax.vjp(function, *arrays)
        return out, vjp(cotangent)

    return run


def temporary_bytes(shape, implementation):
    arguments = (make_cotangent(shape), *make_inputs(shape))
    return prepare(with_gradients(shape, implementation), *arguments).temp_bytes


def test_memory_is_a_tenth_of_the_reference():
    shape = SHAPES["lrnet26/res2"]
    assert temporary_bytes(shape, "xla") <= temporary_bytes(shape, "reference") / 10


def test_memory_does_not_grow_with_the_batch():
    """Beyond what the backward pass is handed: two numbers per pixel and group."""
    shape = Shape("batches", 14, 14, 404, Spec((3, 3), 8))
    one, five = (temporary_bytes(shape.with_batch(batch), "xla") for batch in (1, 5))
    normalizer = 2 * 4 * np.prod(shape.query)
    assert five - one <= 1.5 * 4 * normalizer


def test_export_for_several_platforms():
    """One program; the CPU's part is run, the others are lowered only."""
    run = with_gradients(SMALL, "xla")
    arguments = (make_cotangent(SMALL), *make_inputs(SMALL))
    exported = jax.export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(*arguments)
    got, want = exported.call(*arguments), run(*arguments)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_isolation_is_for_cpu_only():
    """The attribute that keeps stages apart was tried on CPUs alone."""
    function = functools.partial(local_relation, **SMALL.options, implementation="xla")
    for platform, isolated in (("cpu", True), ("cuda", False), ("tpu", False)):
        text = jax.export.export(jax.jit(function), platforms=(platform,))(
            *make_inputs(SMALL)
        ).mlir_module()
        assert ("inlineable" in text) == isolated, platform
