"""State of one optimiser in another; `tests/experiments/run/test_origin.py` moves whole runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrnet_jax.training.checkpoints import CheckpointError
from lrnet_jax.training.optimizer import make_optimizer
from lrnet_jax.training.transfer import Weights, move_optimizer, move_weights, set_schedule

PARAMS = {
    "stem": {"0": {"kernel": jnp.zeros((2, 3))}},
    "head": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)},
}
FROZEN = {"stem/0/kernel": 0.0, "head/kernel": 1.0, "head/bias": 1.0}


def optimizer(name, **options):
    return make_optimizer(name, lambda step: 0.1, **options)


def used(made):
    """The state of an optimiser with a different number in every place."""
    leaves, structure = jax.tree.flatten(made.init(PARAMS))
    sizes = np.cumsum([leaf.size for leaf in leaves])
    numbers = [
        jnp.arange(end - leaf.size, end, dtype=leaf.dtype).reshape(leaf.shape)
        for leaf, end in zip(leaves, sizes, strict=True)
    ]
    return jax.tree.unflatten(structure, numbers)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"factors": FROZEN}])
def test_the_same_numbers_under_another_wrapping(name, options):
    """Clipping adds a place to the chain; a frozen parameter has no numbers."""
    old = used(optimizer(name))
    new = optimizer(name, **options)
    moved = move_optimizer(old, new.init(PARAMS))
    assert jax.tree.structure(moved) == jax.tree.structure(new.init(PARAMS))
    want = jax.tree.leaves(old)
    if "factors" in options:
        want = [leaf for leaf in want if leaf.shape != (2, 3)]
    for one, other in zip(jax.tree.leaves(moved), want, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_adamw_and_lamb_keep_the_same_numbers():
    old = used(optimizer("adamw"))
    moved = move_optimizer(old, optimizer("lamb").init(PARAMS))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(moved), jax.tree.leaves(old))


def test_numbers_that_are_missing_are_named():
    with pytest.raises(ValueError, match=r"it has no mu/head/bias of float32\[4\]"):
        move_optimizer(used(optimizer("sgd")), optimizer("adamw").init(PARAMS))
    with pytest.raises(ValueError, match=r"it has no trace/stem/0/kernel of float32\[2, 3\]"):
        move_optimizer(used(optimizer("sgd", factors=FROZEN)), optimizer("sgd").init(PARAMS))


def test_the_schedule_moves_and_the_moments_do_not():
    old = used(optimizer("adamw"))
    moved = set_schedule(old, 77)
    *moments, count = jax.tree.leaves(moved)
    assert count == 77
    for one, other in zip(moments, jax.tree.leaves(old)[:-1], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neck": {"bias": jnp.zeros(2)}}, "it has params/neck/bias, which this one has not"),
        ({"stem": {}}, "it lacks params/stem/0/kernel, which this one has"),
        (
            {"stem": {"0": {"kernel": jnp.zeros((2, 5))}}},
            r"its params/stem/0/kernel is float32\[2, 5\], and float32\[2, 3\] here",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    weights = Weights("run", {}, False, {"params": {**PARAMS, **change}})
    with pytest.raises(CheckpointError, match=f"checkpoint run is of another network: {message}"):
        move_weights(weights, PARAMS, {}, head=True)
