"""Means over parts of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrnet_jax.training.accumulation import mean_over_parts


def test_the_mean_over_parts_by_hand():
    batch = {"x": jnp.arange(12.0).reshape(6, 2), "y": jnp.arange(6)}
    shapes = []

    def function(part):
        shapes.append(part["x"].shape)
        return {"max": part["x"].max(0), "sum": part["y"].sum().astype(jnp.float32)}

    got = jax.jit(lambda b: mean_over_parts(function, b, 3))(batch)
    np.testing.assert_array_equal(got["max"], np.mean([[2, 3], [6, 7], [10, 11]], 0))
    np.testing.assert_array_equal(got["sum"], np.mean([1, 5, 9]))
    assert set(shapes) == {(2, 2)}
    np.testing.assert_array_equal(mean_over_parts(function, batch, 1)["sum"], 15)
    with pytest.raises(ValueError, match="a share of 6 images cannot be split into 4 equal parts"):
        mean_over_parts(function, batch, 4)
