"""Figures show the priors, queries and keys of the network, layer by layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lrnet_jax
from lrnet_jax import visualize

VARIANT = lrnet_jax.Variant(
    depths=(1, 2), width=6, stage_channels=8, stem_channels=4, stem_kernel_size=3, kernel_size=3,
    stem_channels_per_group=2, channels_per_group=4, query_key_dim=2, prior_hidden=4,
    prior_stddev=2.0, implementation="reference",
)  # fmt: skip
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 13, 3)), jnp.float32)


@pytest.fixture(scope="module")
def model():
    return lrnet_jax.create_from_variant(VARIANT, 3, nnx.Rngs(0))


def test_layers_are_named_from_the_images_on(model):
    assert list(visualize.local_relations(model)) == [
        "stem.1.layer",
        "stages.0.0.branch.1.layer",
        "stages.1.0.branch.1.layer",
        "stages.1.1.branch.1.layer",
    ]
    assert visualize.stage_layers(model) == {
        "res1": "stem.1.layer",
        "res2": "stages.0.0.branch.1.layer",
        "res3": "stages.1.1.branch.1.layer",
    }


def test_priors_are_the_weights_of_a_layer_that_sees_nothing(model):
    layer = model.stages[1][0].branch[1].layer
    weights = visualize.prior_weights(layer)
    assert weights.shape == (3, 3, 3)
    # With constant queries and keys only the prior is left. An image with one bright pixel at
    # offset (1, -1) of the output shows the weight of that tap.
    blind = nnx.clone(layer)
    for transformation in (blind.query, blind.key):
        transformation.kernel[...] = jnp.zeros_like(transformation.kernel[...])
    blind.output.kernel[...] = jnp.eye(12)
    blind.strides = blind.query.strides = 1
    image = jnp.zeros((1, 5, 5, 12)).at[0, 3, 1].set(1)
    np.testing.assert_allclose(blind(image)[0, 2, 2, ::4], weights[:, 2, 0], rtol=1e-5)
    without = dataclasses.replace(VARIANT, prior="none")
    bare = nnx.eval_shape(lambda: lrnet_jax.create_from_variant(without, 3, nnx.Rngs(0)))
    assert visualize.prior_weights(bare.stages[0][0].branch[1].layer) is None


def test_maps_are_the_queries_and_keys_of_each_layer(model):
    before = jax.tree.map(np.asarray, nnx.state(model))
    maps = visualize.query_key_maps(model, IMAGES)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
    assert list(maps) == list(visualize.local_relations(model))
    assert maps["stages.1.0.branch.1.layer"].query.shape == (2, 2, 2, 3, 2)
    assert maps["stages.1.0.branch.1.layer"].key.shape == (2, 4, 4, 3, 2)

    evaluated = nnx.clone(model)
    evaluated.eval()
    x = jax.nn.relu(evaluated.stem[0](IMAGES))
    query, key = evaluated.stem[1].layer.query_and_key(x)
    np.testing.assert_allclose(maps["stem.1.layer"].query, query, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(maps["stem.1.layer"].key, key, rtol=1e-5, atol=1e-6)
    x = jax.nn.relu(evaluated.stages[1][1].branch[0](evaluated_input(evaluated)))
    query, key = evaluated.stages[1][1].branch[1].layer.query_and_key(x)
    got = maps["stages.1.1.branch.1.layer"]
    np.testing.assert_allclose(got.query, query, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.key, key, rtol=1e-4, atol=1e-5)


def evaluated_input(model):
    """The input of the last block."""
    last = model.stages[1]
    model.stages[1] = nnx.List([last[0]])
    x = nnx.jit(lambda model: model.features(IMAGES)["res3"])(model)
    model.stages[1] = last
    return x


def test_rematerialised_networks_show_the_same():
    variant = dataclasses.replace(VARIANT, depths=(1,), remat="blocks")
    model = lrnet_jax.create_from_variant(variant, 3, nnx.Rngs(0))
    maps = visualize.query_key_maps(model, IMAGES)
    assert model.variant.remat == "blocks"
    assert all(np.isfinite(array).all() for pair in maps.values() for array in pair)
