"""Full-image relations and non-local layers agree with loops over pixels and pooled cells."""

import jax.numpy as jnp
import numpy as np
import pytest
import relation_by_hand as by_hand
from flax import nnx
from test_local_relation_layer import random_input, randomize

from lrnet_jax.layers.batch_norm import BatchNorm
from lrnet_jax.layers.full_image import FullImageRelation, difference_indices, differences
from lrnet_jax.layers.non_local import NonLocal, NonLocalBlock
from lrnet_jax.layers.relation import RelationOptions

OPTIONS = RelationOptions(
    channels_per_group=8,
    query_key_dim=1,
    similarity="squared_difference",
    scale=None,
    normalization="softmax",
    prior="network",
    prior_hidden=None,
    prior_stddev=0.01,
    dtype=None,
)


def full_image(in_features, out_features, strides=1, *, pool, output_size=None, **options):
    return FullImageRelation(
        in_features,
        out_features,
        strides,
        pool=pool,
        output_size=output_size,
        rngs=nnx.Rngs(0),
        **OPTIONS | options,
    )


def pool_by_hand(x, window):
    rows, columns = -(-x.shape[1] // window), -(-x.shape[2] // window)
    out = np.zeros((x.shape[0], rows, columns, x.shape[3]))
    for i, j in np.ndindex(rows, columns):
        cell = x[:, i * window : (i + 1) * window, j * window : (j + 1) * window]
        out[:, i, j] = cell.max((1, 2))
    return out


def expected_relation(layer, x):
    s, f = layer.strides, layer.pool
    x = x.astype(np.float64)
    z = pool_by_hand(x, s * f)
    query, key = x[:, ::s, ::s] @ by_hand.kernel(layer.query), z @ by_hand.kernel(layer.key)
    batch, ho, wo, _ = query.shape
    channels, m, dim = x.shape[-1], layer.channels_per_group, layer.query_key_dim
    out = np.zeros((batch, ho, wo, channels))
    for b, i, j, g in np.ndindex(batch, ho, wo, -(-channels // m)):
        vector, group = slice(g * dim, (g + 1) * dim), slice(g * m, (g + 1) * m)
        logits = []
        for a, c in np.ndindex(*z.shape[1:3]):
            logit = by_hand.similarity(
                layer.similarity, query[b, i, j, vector], key[b, a, c, vector]
            )
            if layer.prior is not None:
                dy, dx = (i - a * f - (f - 1) / 2) / ho, (j - c * f - (f - 1) / 2) / wo
                if hasattr(layer.prior, "table"):
                    row = np.argmin(np.abs(differences(ho, f) - dy))
                    column = np.argmin(np.abs(differences(wo, f) - dx))
                    logit += np.asarray(layer.prior.table[...])[g, row, column]
                else:
                    logit += by_hand.network_prior(layer.prior, dy, dx)[g]
            logits.append(logit)
        values = z[b, :, :, group].reshape(len(logits), -1)
        softmax = layer.normalization == "softmax"
        out[b, i, j, group] = by_hand.aggregate(logits, values, softmax)
    return out @ by_hand.kernel(layer.output)


@pytest.mark.parametrize(
    ("strides", "pool", "options"),
    [
        (1, 1, {}),
        (2, 2, {"query_key_dim": 2}),
        (1, 4, {"prior": "table", "output_size": (9, 8)}),
        (2, 1, {"prior": "none", "normalization": "none", "similarity": "absolute_difference"}),
    ],
)
def test_full_image_relation(strides, pool, options):
    layer = full_image(10, 6, strides, pool=pool, channels_per_group=4, **options)
    x = random_input(2, 9, 8, 10)  # 9: partial cells
    want = expected_relation(randomize(layer), x)
    assert np.std(want) > 0.05
    np.testing.assert_allclose(layer(jnp.asarray(x)), want, rtol=2e-4, atol=5e-5)


def test_distinct_differences_are_each_used():
    # 8 pixels, cells of 4 centred on 1.5 and 5.5: from 0 - 5.5 to 7 - 1.5
    np.testing.assert_allclose(differences(8, 4) * 8, np.arange(12) - 5.5)
    assert sorted(set(difference_indices(8, 4).ravel())) == list(range(12))
    assert difference_indices(8, 4)[0].tolist() == [4, 0]


def test_full_image_prior_folds_for_one_size():
    layer = full_image(8, 8, pool=2, output_size=(6, 6))
    randomize(layer)
    x = jnp.asarray(random_input(1, 6, 6, 8))
    before = layer(x)
    layer.fold_prior()
    np.testing.assert_array_equal(layer(x), before)
    with pytest.raises(ValueError, match="table of 10 x 10 positions, but 14 x 14"):
        layer(jnp.asarray(random_input(1, 8, 8, 8)))
    with pytest.raises(ValueError, match="give output_size"):
        full_image(8, 8, pool=2).fold_prior()
    with pytest.raises(ValueError, match="prior 'table' needs output_size"):
        full_image(8, 8, pool=2, prior="table")


@pytest.mark.parametrize(("strides", "pool"), [(1, 1), (2, 2)])
def test_non_local(strides, pool):
    layer = randomize(NonLocal(6, 8, 4, strides=strides, pool=pool, rngs=nnx.Rngs(0)))
    x = random_input(2, 6, 5, 6)

    def embed(linear, x):
        return x @ by_hand.kernel(linear) + np.asarray(linear.bias[...])

    z = pool_by_hand(x, strides * pool).reshape(2, -1, 6)
    theta = embed(layer.theta, x[:, ::strides, ::strides])
    out = np.zeros(theta.shape)
    for b, i, j in np.ndindex(*theta.shape[:3]):
        logits = embed(layer.phi, z[b]) @ theta[b, i, j] / 2  # sqrt(4 inner channels)
        out[b, i, j] = by_hand.aggregate(logits, embed(layer.g, z[b]), normalize=True)
    want = out @ by_hand.kernel(layer.output)
    np.testing.assert_allclose(layer(jnp.asarray(x)), want, rtol=2e-4, atol=2e-5)


def test_non_local_block_starts_as_the_identity():
    block = NonLocalBlock(6, pool=2, norm=BatchNorm(6, scale_init=0.0), rngs=nnx.Rngs(0))
    x = jnp.asarray(random_input(2, 4, 4, 6))
    np.testing.assert_array_equal(block(x), x)
    assert block.layer.theta.kernel.shape == (6, 3)
    block.norm.scale[...] = jnp.ones(6)
    assert np.abs(block(x) - x).max() > 0.1
