"""The list of problem sizes: what the networks hold, and inputs that fit the operator."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrnet_jax import create_from_variant, get_variant
from pallas_kernels import implementations, local_relation
from pallas_kernels.tools.shapes import LAYERS, NETWORKS, ODD, SHAPES, make_cotangent, make_inputs


def test_names_are_unique():
    assert len(SHAPES) == len(NETWORKS) + len(ODD)


@pytest.mark.parametrize(
    ("name", "value", "query"),
    [
        ("stem", (1, 224, 224, 64), (1, 112, 112, 8, 1)),
        ("lrnet26/res2", (1, 56, 56, 101), (1, 56, 56, 13, 1)),
        ("lrnet50/res3_stride2", (1, 56, 56, 200), (1, 28, 28, 25, 1)),
        ("lrnet101/res4", (1, 14, 14, 412), (1, 14, 14, 52, 1)),
        ("lrnet18/res5", (1, 7, 7, 1088), (1, 7, 7, 136, 1)),
    ],
)
def test_network_shapes(name, value, query):
    assert SHAPES[name].value == value
    assert SHAPES[name].query == query


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("network", ["lrnet26", "lrnet50"])
def test_shapes_as_run_are_those_of_the_network(network, dtype, monkeypatch):
    """What the layers of a training step give to the operator, traced at 224 x 224."""
    given = set()

    def recorded(query, key, value, prior=None, **options):
        given.add((query.shape, key.shape, value.shape, options["stride"]))
        options["implementation"] = "reference"
        return local_relation(query, key, value, prior, **options)

    monkeypatch.setattr("lrnet_jax.layers.local_relation.local_relation", recorded)
    # Others may have the stem's local relation in C++, without the operator.
    variant = dataclasses.replace(get_variant(network), dtype=dtype, implementation="xla")
    model = nnx.eval_shape(lambda: create_from_variant(variant, 5, nnx.Rngs(0)))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), dtype)
    nnx.eval_shape(lambda model, x: model(x), model, images)
    shapes = [SHAPES[name].as_run(dtype) for name in LAYERS[network]]
    assert given == {(s.query, s.key, s.value, s.spec.stride) for s in shapes}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_every_shape_is_a_valid_problem(shape):
    arrays = shape.abstract_inputs(jnp.float32)
    assert implementations(*arrays, **shape.options)["reference"].runs
    out = jax.eval_shape(
        lambda *x: local_relation(*x, **shape.options, implementation="reference"), *arrays
    )
    assert out.shape == shape.out


def test_inputs_are_equal_up_to_rounding():
    shape = SHAPES["odd/depth4"].with_batch(2)
    exact, rounded = make_inputs(shape), make_inputs(shape, jnp.bfloat16)
    for size, a, b in zip(
        (shape.query, shape.key, shape.value, shape.prior), exact, rounded, strict=True
    ):
        assert a.shape == size
        np.testing.assert_array_equal(a.astype(jnp.bfloat16), b)
    assert make_inputs(SHAPES["odd/no_prior"])[3] is None
    assert make_cotangent(shape).shape == shape.out
