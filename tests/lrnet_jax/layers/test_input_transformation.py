"""The pass over the image is the channel transformation, its normalisation and ReLU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrnet_jax.layers.batch_norm import BatchNorm
from lrnet_jax.layers.channel_transformation import ChannelTransformation
from lrnet_jax.layers.input_transformation import is_input, transform_input
from lrnet_jax.layers.local_relation import LocalRelation
from pallas_kernels import pallas
from pallas_kernels.native import library
from pallas_kernels.pallas import absent_gpu
from pallas_kernels.pallas.stem import Maps
from tests.lrnet_jax.layers.joint_maps import (
    assert_close,
    check_shared_parameters,
    check_statistics_over_devices,
    cotangent,
    derivatives_of,
)

SHAPE = (8, 5, 6, 3)
STATIC = ("how", "strides", "evaluated", "group_images", "axis_name")
LAYERS, PLAIN, KERNELS, NATIVE = "layers", "xla", "pallas_interpret", "native"
needs_library = pytest.mark.skipif(library.obstacle() is not None, reason=str(library.obstacle()))
STEM_TARGETS = library.STEM_FORWARD, library.STEM_BACKWARD
ALL = [PLAIN, KERNELS, pytest.param(NATIVE, marks=needs_library)]


class Stem(nnx.Module):
    """Values, keys and queries, by an implementation or by the layers one after the other."""

    def __init__(self, how, strides=2, evaluated=False, **options):
        rng = np.random.default_rng(1)
        self.how = how
        self.layer = ChannelTransformation(3, 10, rngs=nnx.Rngs(0))
        self.norm = BatchNorm(10, **options)
        self.norm.scale[...] = jnp.asarray(rng.uniform(0.5, 2, 10), jnp.float32)
        self.norm.bias[...] = jnp.asarray(rng.uniform(-1, 1, 10), jnp.float32)
        self.norm.mean[...] = jnp.asarray(rng.normal(0, 1, 10), jnp.float32)
        self.norm.var[...] = jnp.asarray(rng.uniform(0.5, 2, 10), jnp.float32)
        self.relation = LocalRelation(
            10, 8, 3, strides, channels_per_group=4, implementation=how, rngs=nnx.Rngs(1)
        )
        if evaluated:
            self.eval()

    def __call__(self, x):
        if self.how != LAYERS:
            assert is_input(self.layer)
            return transform_input(self.layer, self.norm, self.relation, x)
        for layer in (self.layer, self.relation.query, self.relation.key):
            layer.dtype = x.dtype
        y = self.norm(self.layer(x), relu=True)
        query, key = self.relation.query_and_key(y)
        return Maps(y, key[..., 0], query[..., 0])


def images(shape=SHAPE, mean=0.7):
    return jnp.asarray(np.random.default_rng(0).normal(mean, 2.0, shape), jnp.float32)


@functools.partial(jax.jit, static_argnames=STATIC)
def derivatives(how, x, d_y, **options):
    """Maps, running averages, and the gradients of parameters and image."""
    return derivatives_of(Stem(how, **options), x, d_y)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(("group_images", "strides"), [(None, 2), (2, 2), (None, 1)])
def test_agrees_with_the_layers(how, group_images, strides):
    x, d_y = images(), cotangent(strides)
    ours, theirs = (
        derivatives(h, x, d_y, group_images=group_images, strides=strides) for h in (how, LAYERS)
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize("how", ALL)
def test_the_gradient_of_the_image_is_that_of_differences(how):
    x, d_y = images((2, 2, 2, 3)), jax.tree.map(lambda d: d[:2, :2, :2], cotangent(2))
    d_y = d_y._replace(query=d_y.query[:, :1, :1])
    direction = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    ends = [derivatives(how, x + h * direction, d_y)[0] for h in (1e-2, -1e-2)]
    want = sum(
        np.sum((np.asarray(a, np.float64) - np.asarray(b)) * np.asarray(d)) / 2e-2
        for a, b, d in zip(*ends, d_y, strict=True)
    )
    gradient = derivatives(how, x, d_y)[-1]
    # A ReLU that changes its sign on the way, and the rounding of float32 over 2e-2.
    np.testing.assert_allclose(np.sum(np.asarray(gradient) * direction), want, rtol=5e-3)


def test_axis_name_takes_statistics_over_devices():
    check_statistics_over_devices(functools.partial(derivatives, PLAIN), images(), cotangent(2))


def test_parameters_that_all_devices_share():
    check_shared_parameters(Stem(PLAIN, group_images=2), images(), cotangent(2))


def test_large_means_do_not_cancel_the_variance():
    x = images(mean=3000.0)
    exact = np.asarray(x, np.float64) @ np.asarray(Stem(PLAIN).layer.kernel[...], np.float64)
    norm = Stem(PLAIN).norm
    want = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + norm.epsilon)
    want = np.maximum(np.asarray(norm.scale[...]) * want + np.asarray(norm.bias[...]), 0)
    np.testing.assert_allclose(Stem(PLAIN)(x).value, want, atol=2e-3)


@pytest.mark.parametrize("how", [PLAIN, KERNELS])
def test_bfloat16_is_nearer_to_float32_than_the_layers_are(how):
    # A sum in float32 can come out exact in one of the two.
    bounds = np.maximum(bfloat16_errors(LAYERS), 8 * np.finfo(np.float32).eps)
    errors = bfloat16_errors(how)
    assert np.all(np.less_equal(errors, bounds)), errors


def test_bfloat16_gradients_of_the_kernels_are_nearer_than_plain_ones():
    assert np.all(np.less_equal(bfloat16_errors(KERNELS)[:-1], bfloat16_errors(PLAIN)[:-1]))


@functools.cache
def bfloat16_errors(how):
    """Relative errors of the gradients, that of the image last, against float32."""
    x, d_y = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (images(), cotangent(2)))
    exact = derivatives(LAYERS, *jax.tree.map(lambda a: a.astype(jnp.float32), (x, d_y)))
    got = derivatives(how, x, d_y)
    assert got[0].value.dtype == got[3].dtype == jnp.bfloat16
    return [
        float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
        for a, b in zip(jax.tree.leaves(got[2:]), jax.tree.leaves(exact[2:]), strict=True)
        if jnp.linalg.norm(b) > 0  # the relation's own parameters do not take part
    ]


def lowered(how, platform):
    """The text of a program with values, keys, queries and all gradients."""
    program = jax.jit(functools.partial(derivatives.__wrapped__, how))
    arguments = images(), cotangent(2)
    with absent_gpu():
        return program.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


# JAX 0.11 and later say so at each lowering.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize(
    ("how", "platform", "found"),
    [(None, "cuda", 1), ("pallas", "cuda", 1), ("xla", "cuda", 0), (None, "cpu", 0)],
)
def test_a_gpu_gets_the_kernels(how, platform, found):
    text = lowered(how, platform)
    assert [text.count(f'"stem_{name}"') > 0 for name in ("forward", "backward")] == [found] * 2


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_a_gpu_computes_again_the_values_alone():
    """Plain JAX writes these in one pass; the kernel would write keys and queries too."""
    stem, x = Stem(None, evaluated=True), images()

    def total(x):
        return sum(jnp.sum(part) for part in jax.checkpoint(stem)(x))

    with absent_gpu():
        traced = jax.jit(jax.value_and_grad(total)).trace(x)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count('"stem_forward"') == 1


@needs_library
@pytest.mark.parametrize(("how", "found"), [(None, 1), ("native", 1), ("xla", 0)])
def test_a_cpu_gets_the_library(how, found):
    text = lowered(how, "cpu")
    assert [text.count(name) > 0 for name in STEM_TARGETS] == [found] * 2


def test_an_exported_program_has_plain_jax():
    """It runs where this package is not."""
    exported = jax.export.export(jax.jit(lambda x: Stem(None)(x)), platforms=["cpu"])(images())
    assert not any(name in exported.mlir_module() for name in STEM_TARGETS)


def test_a_jax_without_the_backend_gets_plain_jax(monkeypatch):
    monkeypatch.setattr(pallas, "backend_gone", lambda: "JAX has no Pallas-Triton")
    assert "stem_forward" not in lowered(None, "cuda")


@pytest.mark.parametrize("how", ALL)
def test_in_evaluation_it_agrees_with_the_layers(how):
    x, d_y = images(), cotangent(2)
    ours, theirs = (derivatives(h, x, d_y, evaluated=True) for h in (how, LAYERS))
    assert_close(ours, theirs)
    np.testing.assert_array_equal(*(jax.tree.leaves(m[1])[0] for m in (ours, theirs)))


def test_only_images_without_strides_are_inputs():
    assert is_input(Stem(PLAIN).layer)
    assert not is_input(ChannelTransformation(16, 10, rngs=nnx.Rngs(0)))
    assert not is_input(ChannelTransformation(3, 10, strides=2, rngs=nnx.Rngs(0)))
    assert not is_input(ChannelTransformation(3, 10, use_bias=True, rngs=nnx.Rngs(0)))
