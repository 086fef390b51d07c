"""The local relation layer agrees with loops over pixels and taps, and replaces a convolution."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import relation_by_hand as by_hand
from flax import nnx

from lrnet_jax import LocalRelation, Variant
from lrnet_jax.layers.relation import RelationOptions


def random_input(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def randomize(layer):
    """Sets weights large enough that a wrong prior or similarity shows."""
    rng = np.random.default_rng(3)
    for leaf in jax.tree.leaves(nnx.state(layer), is_leaf=lambda v: isinstance(v, nnx.Variable)):
        leaf[...] = jnp.asarray(rng.normal(0, 0.6, leaf.shape), jnp.float32)
    return layer


def expected(layer, x):
    """Computes figure 2 of the paper in float64, one output pixel, group and tap at a time."""
    x = x.astype(np.float64)
    query, key = x @ by_hand.kernel(layer.query), x @ by_hand.kernel(layer.key)
    batch, height, width, channels = x.shape
    k, s, m, dim = layer.kernel_size, layer.strides, layer.channels_per_group, layer.query_key_dim
    r = k // 2
    out = np.zeros((batch, (height - 1) // s + 1, (width - 1) // s + 1, channels))
    for b, i, j, g in np.ndindex(*out.shape[:3], -(-channels // m)):
        vector, group = slice(g * dim, (g + 1) * dim), slice(g * m, (g + 1) * m)
        logits, values = [], []
        for a, c in np.ndindex(k, k):
            y, z = i * s + (a - r) * layer.dilation, j * s + (c - r) * layer.dilation
            if not (0 <= y < height and 0 <= z < width):
                continue
            logit = layer.scale * by_hand.similarity(
                layer.similarity, query[b, i * s, j * s, vector], key[b, y, z, vector]
            )
            if hasattr(layer.prior, "table"):
                logit += np.asarray(layer.prior.table[...])[g, a, c]
            elif layer.prior is not None:
                logit += by_hand.network_prior(layer.prior, (a - r) / r, (c - r) / r)[g]
            logits.append(logit)
            values.append(x[b, y, z, group])
        out[b, i, j, group] = by_hand.aggregate(logits, values, layer.normalization == "softmax")
    return out @ by_hand.kernel(layer.output)


@pytest.mark.parametrize(
    ("strides", "options"),
    [
        (1, {}),
        (2, {"channels_per_group": 4}),  # 10 channels: the last group has 2
        (2, {"query_key_dim": 3, "similarity": "multiplication", "prior": "table"}),
        (1, {"similarity": "absolute_difference", "prior": "none", "dilation": 2}),
        (1, {"normalization": "none", "prior_hidden": 5}),
    ],
)
def test_layer_is_the_papers_figure_2(strides, options):
    layer = randomize(LocalRelation(10, 6, 3, strides, **options, rngs=nnx.Rngs(0)))
    x = random_input(2, 5, 6, 10)
    want = expected(layer, x)
    assert np.std(want) > 0.05
    np.testing.assert_allclose(layer(jnp.asarray(x)), want, rtol=2e-4, atol=2e-5)


def test_options_default_to_those_of_the_variant():
    parameters = inspect.signature(LocalRelation.__init__).parameters
    for name in RelationOptions.__annotations__:
        if name != "dtype":  # a network computes in float32, a layer in the dtype of its input
            assert parameters[name].default == getattr(Variant(), name), name


def test_scale_defaults_to_the_papers():
    def scale(**options):
        return LocalRelation(8, 8, query_key_dim=4, **options, rngs=nnx.Rngs(0)).scale

    assert scale() == 1.0
    assert scale(similarity="multiplication") == 0.5
    assert scale(similarity="multiplication", scale=2.0) == 2.0


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [7, 8])
def test_drops_in_for_a_convolution(strides, size):
    x = jax.ShapeDtypeStruct((2, size, size, 16), jnp.float32)
    convolution = nnx.Conv(16, 24, (7, 7), strides=strides, padding=3, rngs=nnx.Rngs(0))
    relation = LocalRelation(16, 24, 7, strides, rngs=nnx.Rngs(0))
    shapes = [nnx.eval_shape(lambda f, x: f(x), f, x) for f in (convolution, relation)]
    assert shapes[0].shape == shapes[1].shape
    assert shapes[0].dtype == shapes[1].dtype


def test_initial_weights_are_small_queries_and_keys_and_an_almost_flat_prior():
    layer = LocalRelation(512, 256, rngs=nnx.Rngs(0))
    for linear, variance in ((layer.query, 0.1), (layer.key, 0.1), (layer.output, 2)):
        np.testing.assert_allclose(np.std(linear.kernel[...]), np.sqrt(variance / 512), rtol=0.03)
        assert linear.bias is None
    assert layer.prior.hidden.kernel.shape == (2, 64)  # as wide as there are groups
    np.testing.assert_allclose(np.std(layer.prior.output.kernel[...]), 0.01, rtol=0.05)
    bias = np.asarray(layer.prior.hidden.bias[...])
    assert -1 <= bias.min() < -0.8
    assert 0.8 < bias.max() <= 1
    assert np.abs(layer.geometric_prior()).max() < 0.5


def test_prior_is_float32_and_folds_to_the_same_output():
    layer = LocalRelation(16, 16, 3, prior_hidden=64, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    randomize(layer)
    x = jnp.asarray(random_input(1, 6, 6, 16), jnp.bfloat16)
    prior, before = layer.geometric_prior(), layer(x)
    assert prior.dtype == jnp.float32
    assert before.dtype == jnp.bfloat16
    layer.fold_prior()
    np.testing.assert_array_equal(layer.prior.table[...], prior)
    np.testing.assert_array_equal(layer(x), before)


def test_errors():
    with pytest.raises(ValueError, match="prior must be one of network, table, none; got 'net'"):
        LocalRelation(8, 8, prior="net", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        LocalRelation(8, 8, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="channels_per_group must be at least 1, got 0"):
        LocalRelation(8, 8, channels_per_group=0, rngs=nnx.Rngs(0))
    table = LocalRelation(8, 8, 3, prior="table", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="a table of 3 x 3 positions, but 5 x 3"):
        table.prior(np.zeros(5), np.zeros(3))


def test_other_channels_and_a_seed_are_answered():
    layer = LocalRelation(6, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, 6\), got \(1, 9, 9, 5\); in_feat"):
        layer(random_input(1, 9, 9, 5))
    with pytest.raises(TypeError, match=r"got 0; write rngs=nnx.Rngs\(0\)"):
        LocalRelation(6, 4, rngs=0)


@pytest.mark.parametrize(("strides", "products"), [(1, 1), (2, 2)])
def test_queries_and_keys_of_the_same_pixels_are_one_product(strides, products):
    layer = LocalRelation(10, 6, 3, strides, query_key_dim=2, rngs=nnx.Rngs(0))
    x = jnp.asarray(random_input(2, 5, 6, 10))
    traced = jax.jit(lambda x: layer.query_and_key(x)).trace(x)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()  # on a CPU they may be C++
    assert text.count("stablehlo.dot_general") == products
    query, key = layer.query_and_key(x)
    np.testing.assert_allclose(query, layer.query(x).reshape(query.shape), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(key, layer.key(x).reshape(key.shape), rtol=1e-5, atol=1e-6)
