"""The list of problem sizes: what the networks hold, and inputs that fit the operator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import implementations, local_relation
from pallas_kernels.tools.shapes import NETWORKS, ODD, SHAPES, make_cotangent, make_inputs


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
