"""Local relations of values that are computed from images: float64, instruction sets, threads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import local_relation, native
from pallas_kernels.native import images, library, stem
from pallas_kernels.pallas.stem import Inputs, Maps
from pallas_kernels.spec import Inputs as Relation
from pallas_kernels.spec import Residuals, Spec
from tests.pallas_kernels.native.test_native import instruction_sets, needs_library, use
from tests.pallas_kernels.pallas.stem import stem_problems

__all__ = ["use"]  # a fixture


@dataclasses.dataclass(frozen=True)
class Problem:
    batch: int
    height: int
    width: int
    inputs: int
    channels: int
    spec: Spec
    means: int = 1
    depth: int = 1

    @functools.cached_property
    def arrays(self):
        """Images with their parameters, the prior, and a gradient of the output."""
        rng = np.random.default_rng(0)
        groups = self.spec.groups(self.channels)

        def normal(*shape):
            return rng.normal(0.1, 1, shape).astype(np.float32)

        inputs = Inputs(
            normal(self.batch, self.height, self.width, self.inputs),
            normal(self.means, self.inputs),
            normal(self.means, self.inputs, self.channels),
            normal(self.channels),
            normal(self.channels, groups * self.depth) / 8,
            normal(self.channels, groups * self.depth) / 8,
        )
        pixels = (self.batch, *self.spec.output_size(self.height, self.width))
        return inputs, normal(groups, *self.spec.kernel_size), normal(*pixels, self.channels)


PROBLEMS = {
    "network": Problem(2, 34, 32, 3, 64, Spec((7, 7), 8, 2)),
    # Groups do not fill a vector, the last is partial, and each pair of images has a mean.
    "partial": Problem(4, 9, 11, 3, 20, Spec((3, 5), 3, 2, dilation=2), means=2),
    "dilated": Problem(2, 8, 7, 2, 15, Spec((3, 3), 5, dilation=2)),
    "grey": Problem(2, 7, 6, 1, 16, Spec((7, 7), 8), means=2),
    # Bands of rows, and chunks of groups of which the last has one group with a part of a vector.
    "chunks": Problem(1, 37, 5, 4, 68, Spec((3, 3), 4, normalization="none"), depth=2),
    # One thread does both blocks of an image in one go, and two threads do not.
    "blocks": Problem(5, 35, 3, 2, 4, Spec((3, 3), 2)),
    "narrow": Problem(1, 3, 1, 2, 5, Spec((3, 3), 2, 3, similarity="multiplication"), depth=3),
}


@functools.cache
def program(spec):
    def run(inputs, prior, d_out):
        kept = images.forward(spec, inputs, prior)
        arrays = (inputs, prior, kept, d_out)
        return kept, images.gradients_of_maps(spec, *arrays), *images.backward(spec, *arrays)

    return jax.jit(run)


def values_of(inputs):
    x, mean, weights, bias = inputs[:4]
    rows = x.reshape(mean.shape[0], -1, x.shape[-1])
    linear = jnp.einsum("npi,nic->npc", rows - mean[:, None], weights) + bias
    return jnp.maximum(linear, 0).reshape(*x.shape[:3], -1)


@functools.cache
def in_float64(name):
    """Maps, output, the gradients of value, key, query and prior, and sums, by the reference."""
    problem = PROBLEMS[name]
    spec = problem.spec
    with jax.enable_x64(True):
        inputs, prior, d_out = jax.tree.map(lambda a: a.astype(np.float64), problem.arrays)
        value = values_of(inputs)
        key, query = value @ inputs.key, value[:, :: spec.stride, :: spec.stride] @ inputs.query
        groups = prior.shape[0]

        def related(query, key, value, prior):
            vectors = (a.reshape(*a.shape[:3], groups, -1) for a in (query, key))
            options = {**dataclasses.asdict(spec), "implementation": "reference"}
            return local_relation(*vectors, value, prior, **options)

        out, vjp = jax.vjp(related, query, key, value, prior)
        d_query, d_key, d_value, d_prior = vjp(d_out)
        d_maps = Maps(d_value, d_key, d_query)
        _, sums = stem_problems.in_float64(inputs, d_maps, spec.stride)
        found = key, query, out, *d_maps, d_prior, *sums
    return jax.tree.map(np.asarray, found)


def results(name):
    problem = PROBLEMS[name]
    kept, d_maps, sums, d_prior = program(problem.spec)(*problem.arrays)
    return kept.key, kept.query, kept.out, *d_maps, d_prior, *sums


@needs_library
@pytest.mark.parametrize("instruction_set", instruction_sets)
@pytest.mark.parametrize("name", PROBLEMS)
def test_against_float64(name, instruction_set, use):
    use(instruction_set)
    for got, want in zip(results(name), in_float64(name), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@needs_library
def test_the_values_have_the_bits_of_a_map():
    """An output that is its own window's one tap is the value."""
    spec = Spec((1, 1), 8)
    inputs, _, _ = PROBLEMS["network"].arrays
    prior = np.zeros((8, 1, 1), np.float32)
    maps = jax.jit(functools.partial(stem.forward, stride=1))(inputs)
    kept = jax.jit(functools.partial(images.forward, spec))(inputs, prior)
    np.testing.assert_array_equal(kept.out, maps.value)
    np.testing.assert_array_equal(kept.key, maps.key)
    np.testing.assert_array_equal(kept.query, maps.query)


@needs_library
@pytest.mark.parametrize("name", ["network", "chunks", "blocks"])
def test_threads_make_no_difference(name, use):
    found = []
    for threads in (1, 2, library.ALL_THREADS):
        use(instruction_sets[0], threads)
        found.append(results(name))
    for others in found[1:]:
        for a, b in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(a, b)


@needs_library
def test_vmap():
    problem = PROBLEMS["partial"]
    stacked = jax.tree.map(lambda a: np.stack([a[::-1], a]), problem.arrays)
    both = jax.jit(jax.vmap(program(problem.spec)))(*stacked)
    alone = program(problem.spec)(*problem.arrays)
    for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(a[1], b)


@needs_library
@pytest.mark.parametrize(("name", "row", "column"), [("partial", 4, 4), ("dilated", 3, 6)])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_windows(number, name, row, column):
    """Also in the last column of an image, and in a partial group."""
    problem = PROBLEMS[name]
    inputs, prior, d_out = problem.arrays
    x = np.array(inputs.x)
    x[0, row, column] = number
    run = program(problem.spec)
    clean, d_clean, *_ = run(inputs, prior, d_out)
    kept, d_maps, *_ = run(inputs._replace(x=x), prior, d_out)
    touched = np.zeros(kept.out.shape[:3], bool)
    touched[0] = np.outer(*(reads(problem, axis, at) for axis, at in ((0, row), (1, column))))
    assert 0 < touched.sum() < touched[0].size
    for found, before in ((kept.out, clean.out), (d_maps.query, d_clean.query)):
        np.testing.assert_array_equal(found[~touched], before[~touched])
        assert not np.isfinite(found[touched]).all()


def reads(problem, axis, place):
    """Which outputs along an axis have a tap at a place of the input."""
    spec = problem.spec
    size = (problem.height, problem.width)[axis]
    centres = np.arange(0, size, spec.stride)[:, None]
    taps = spec.dilation * (np.arange(spec.kernel_size[axis]) - spec.kernel_size[axis] // 2)
    return (centres + taps == place).any(1)


@needs_library
def test_infinities_have_the_bits_of_the_relation_of_maps():
    """Values of 0 in the partial group, beside infinities in the others: it reads no more."""
    problem = Problem(1, 6, 7, 3, 20, Spec((3, 3), 3, 2))
    spec, (inputs, prior, d_out) = problem.spec, problem.arrays
    x, weights = np.array(inputs.x), np.abs(inputs.weights)
    x[0, 2, 3], weights[..., 18:] = np.inf, -1  # a pixel without a query
    inputs = inputs._replace(x=x, weights=weights, key=np.abs(inputs.key))
    kept, d_maps, _, d_prior = program(spec)(inputs, prior, d_out)

    @jax.jit
    def of_maps(inputs, prior, d_out):
        maps = stem.forward(inputs, spec.stride)
        vectors = (a[..., None] for a in (maps.query, maps.key))
        relation = Relation(*vectors, maps.value, prior)
        out, normalizer = native.forward(spec, relation)
        return out, native.backward(spec, Residuals(relation, out, normalizer), d_out)

    out, gradients = of_maps(inputs, prior, d_out)
    assert np.isfinite(gradients.prior[-1]).all()
    assert not np.isfinite(gradients.prior).all()
    pairs = (kept.out, out), (d_maps.value, gradients.value), (d_prior, gradients.prior)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
