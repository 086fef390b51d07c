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

SHAPE = (8, 5, 6, 3)


class Stem(nnx.Module):
    def __init__(self, fused, **options):
        rng = np.random.default_rng(1)
        self.fused = fused
        self.layer = ChannelTransformation(3, 10, rngs=nnx.Rngs(0))
        self.norm = BatchNorm(10, **options)
        self.norm.scale[...] = jnp.asarray(rng.uniform(0.5, 2, 10), jnp.float32)
        self.norm.bias[...] = jnp.asarray(rng.uniform(-1, 1, 10), jnp.float32)

    def __call__(self, x):
        if self.fused:
            assert is_input(self.layer, self.norm)
            return transform_input(self.layer, self.norm, x)
        self.layer.dtype = x.dtype
        return self.norm(self.layer(x), relu=True)


def images(shape=SHAPE, mean=0.7):
    return jnp.asarray(np.random.default_rng(0).normal(mean, 2.0, shape), jnp.float32)


def cotangent():
    of_image = jnp.linspace(-1, 2, 8)[:, None, None, None]
    return jnp.asarray(np.random.default_rng(2).normal(0.2, 1, (*SHAPE[:3], 10))) * of_image


@functools.partial(jax.jit, static_argnames=("fused", "group_images", "axis_name"))
def derivatives(fused, x, d_y, **options):
    """y, running averages, and the gradients of parameters and image."""
    graphdef, params, statistics = nnx.split(Stem(fused, **options), nnx.Param, ...)

    def run(params, x):
        stem = nnx.merge(graphdef, params, statistics, copy=True)
        return stem(x), nnx.state(stem, nnx.BatchStat)

    y, vjp, moved = jax.vjp(run, params, x, has_aux=True)
    return y, moved, *vjp(d_y.astype(y.dtype))


def assert_close(ours, theirs, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = np.max(np.abs(b)) + 1e-3
        np.testing.assert_allclose(a / scale, b / scale, atol=tolerance)


@pytest.mark.parametrize("group_images", [None, 2])
def test_agrees_with_the_layers(group_images):
    x, d_y = images(), cotangent()
    ours, theirs = (derivatives(f, x, d_y, group_images=group_images) for f in (True, False))
    assert_close(ours, theirs)


def test_the_gradient_of_the_image_is_that_of_differences():
    x, d_y = images((2, 2, 2, 3)), cotangent()[:2, :2, :2]
    direction = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    ends = [
        np.asarray(derivatives(True, x + h * direction, d_y)[0], np.float64) for h in (1e-2, -1e-2)
    ]
    want = np.sum((ends[0] - ends[1]) * np.asarray(d_y)) / 2e-2
    gradient = derivatives(True, x, d_y)[-1]
    # A ReLU that changes its sign on the way, and the rounding of float32 over 2e-2.
    np.testing.assert_allclose(np.sum(np.asarray(gradient) * direction), want, rtol=5e-3)


def test_axis_name_takes_statistics_over_devices():
    x, d_y = images(), cotangent()
    y, moved, d_params, d_x = derivatives(True, x, d_y)
    shared = jax.pmap(
        lambda x, d_y: derivatives(True, x, d_y, axis_name="batch"), axis_name="batch"
    )(*(array.reshape(4, 2, *array.shape[1:]) for array in (x, d_y)))
    assert_close(shared[0].reshape(y.shape), y)
    assert_close(jax.tree.map(lambda leaf: leaf[3], shared[1]), moved)
    assert_close(jax.tree.map(lambda leaf: jnp.sum(leaf, 0), shared[2]), d_params)
    assert_close(shared[3].reshape(x.shape), d_x)


def test_large_means_do_not_cancel_the_variance():
    x = images(mean=3000.0)
    exact = np.asarray(x, np.float64) @ np.asarray(Stem(True).layer.kernel[...], np.float64)
    norm = Stem(True).norm
    want = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + norm.epsilon)
    want = np.maximum(np.asarray(norm.scale[...]) * want + np.asarray(norm.bias[...]), 0)
    np.testing.assert_allclose(Stem(True)(x), want, atol=2e-3)


def test_bfloat16_is_nearer_to_float32_than_the_layers_are():
    x, d_y = images(), cotangent()
    x, d_y = (a.astype(jnp.bfloat16) for a in (x, d_y))
    exact = derivatives(False, x.astype(jnp.float32), d_y.astype(jnp.float32))
    errors = []
    for fused in (True, False):
        got = derivatives(fused, x, d_y)
        assert got[0].dtype == got[3].dtype == jnp.bfloat16
        errors.append(
            [
                float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
                for a, b in zip(jax.tree.leaves(got[2:]), jax.tree.leaves(exact[2:]), strict=True)
            ]
        )
    assert np.all(np.less_equal(errors[0], errors[1])), errors


def test_only_images_in_training_without_strides_are_inputs():
    stem = Stem(True)
    assert is_input(stem.layer, stem.norm)
    assert not is_input(ChannelTransformation(16, 10, rngs=nnx.Rngs(0)), stem.norm)
    assert not is_input(ChannelTransformation(3, 10, strides=2, rngs=nnx.Rngs(0)), stem.norm)
    assert not is_input(ChannelTransformation(3, 10, use_bias=True, rngs=nnx.Rngs(0)), stem.norm)
    stem.eval()
    assert not is_input(stem.layer, stem.norm)
