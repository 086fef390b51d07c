"""The norm of a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrnet_jax.training import norm

RNG = np.random.default_rng(0)
TREES = {
    "short": {"a": (3, 5), "b": [(7,), ()]},
    "long": {"a": (2, 10), "b": (12,)},
    "both": {"a": (3, 5), "b": [(7,), (2, 10)], "c": None},
}


def draw(shapes):
    return jax.tree.map(
        lambda shape: RNG.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


@pytest.mark.parametrize("name", TREES)
def test_is_the_root_of_the_sum_of_squares(name, monkeypatch):
    monkeypatch.setattr(norm, "JOINED", 10)
    tree = draw(TREES[name])
    squares = sum(float(np.sum(np.square(x, dtype=np.float64))) for x in jax.tree.leaves(tree))
    found = jax.jit(lambda tree: norm.global_norm(tree))(tree)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, squares**0.5, rtol=1e-6)


def test_of_nothing_is_zero():
    """All parameters may be frozen."""
    assert norm.global_norm({}) == 0


def test_a_cpu_sums_short_arrays_together():
    """It compiles one sum, and not one for each shape."""
    tree = draw({"a": (3, 5), "b": (7,), "c": (2, 2), "d": (9, 1)})
    text = jax.jit(lambda tree: norm.global_norm(tree)).lower(tree).as_text()
    assert text.count("stablehlo.reduce(") == 1
    exported = jax.export.export(jax.jit(lambda tree: norm.global_norm(tree)), platforms=["cuda"])
    assert exported(tree).mlir_module().count("stablehlo.reduce(") == 4
