"""Normalisations that are folded into the weights before them: the same logits by fewer layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lrnet_jax
from lrnet_jax.folding import Shift, fold_norms
from lrnet_jax.layers.batch_norm import BatchNorm
from tests.lrnet_jax.test_networks import FAST, create, images, small

# Those of 50 and 101 layers differ from these in their depths.
NAMES = [name for name in lrnet_jax.list_models() if not {"50", "101"} & {name[-2:], name[-3:]}]


def randomized(variant):
    """A network in evaluation mode whose norms do something to every channel."""
    model = create(variant)
    rng = np.random.default_rng(1)
    for norm in find(model, BatchNorm):
        size = norm.scale.shape
        norm.scale[...] = jnp.asarray(rng.uniform(-1.5, 1.5, size), jnp.float32)
        norm.var[...] = jnp.asarray(rng.uniform(0.3, 3, size), jnp.float32)
        for variable in (norm.bias, norm.mean):
            variable[...] = jnp.asarray(rng.normal(0, 0.5, size), jnp.float32)
    model.eval()
    return model


def find(model, kind):
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, kind)]


def logits(model, x):
    return np.asarray(jax.jit(lambda x: model(x), compiler_options=FAST)(x))


@pytest.mark.parametrize(
    ("name", "fields"), [*((name, {}) for name in NAMES), ("lrnet26", {"scope": "full"})]
)
def test_logits_stay_the_same(name, fields):
    x = images(2, 16, 16, 3)
    model = randomized(small(name, image_size=16, **fields))
    want, norms = logits(model, x), len(find(model, BatchNorm))
    folded = fold_norms(model)
    got = logits(folded, x)
    # Weights are rounded once more, and every sum is over rounded terms.
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), rtol=0)
    # The stem of a local relation folds the norm of the image's map by itself.
    left = int(isinstance(model.stem[-1].layer, lrnet_jax.LocalRelation))
    assert len(find(folded, BatchNorm)) == left
    assert len(find(folded, Shift)) == norms - left
    np.testing.assert_array_equal(logits(model, x), want)  # the original is as it was


def test_narrow_channels_are_filled_up_as_before():
    """In bfloat16, blocks have multiples of 8 channels, of which some are zeros."""
    x = images(2, 16, 16, 3)
    model = randomized(dataclasses.replace(small("lrnet26"), dtype="bfloat16"))
    want = logits(model, x)
    got = logits(fold_norms(model), x)
    assert np.abs(got - want).max() <= 2**-5 * np.abs(want).max()


@pytest.mark.parametrize("relu", [False, True])
def test_a_shift_is_a_normalisation_by_one(relu):
    norm = BatchNorm(5, epsilon=0.5)
    norm.var[...] = jnp.full(5, 0.5)
    norm.bias[...] = jnp.arange(-2.0, 3.0)
    norm.eval()
    x = jnp.pad(images(2, 3, 3, 5), ((0, 0),) * 3 + ((0, 3),))
    shift = Shift(norm.bias[...])
    want = norm(x, relu=relu, multiple=8)
    np.testing.assert_array_equal(shift(x, relu=relu, multiple=8), want)
