"""Factors of the learning rate, by patterns and by depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrnet_jax.training.multipliers import rate_factors, scale_by_factors

LEAF = jnp.ones(2)
NORM = {"bias": LEAF, "scale": LEAF}
BLOCK = {"branch": {"0": {"layer": {"kernel": LEAF}, "norm": NORM}}}
PARAMS = {
    "head": {"bias": LEAF, "kernel": LEAF},
    "stages": {"0": {str(i): BLOCK for i in range(11)}, "1": {"0": BLOCK}},
    "stem": {"0": {"layer": {"kernel": LEAF}, "norm": NORM}},
}


def test_a_pattern_means_what_is_below_a_path_and_the_last_one_counts():
    factors = rate_factors(PARAMS, {"*": 0, "stages/0/1": 0.5, "head": 10, "*/norm": 2})
    assert factors["head/kernel"] == factors["head/bias"] == 10
    assert factors["stages/0/1/branch/0/layer/kernel"] == 0.5
    assert factors["stages/0/10/branch/0/layer/kernel"] == 0  # 1 is not the beginning of 10
    assert factors["stem/0/norm/scale"] == factors["stages/1/0/branch/0/norm/bias"] == 2
    assert factors["stem/0/layer/kernel"] == 0
    assert set(rate_factors(PARAMS, {}).values()) == {1.0}
    assert rate_factors(PARAMS, {"*bias": 3})["head/bias"] == 3


def test_layer_decay_counts_blocks_from_the_head_in_the_networks_order():
    factors = rate_factors(PARAMS, {"head": 4}, layer_decay=0.5)
    assert factors["head/kernel"] == 4
    assert factors["stages/1/0/branch/0/layer/kernel"] == 0.5
    # Block 10 comes after block 9, not after block 1.
    assert factors["stages/0/10/branch/0/layer/kernel"] == 0.5**2
    assert factors["stages/0/2/branch/0/norm/scale"] == 0.5**10
    assert factors["stem/0/layer/kernel"] == 0.5**13


def test_what_matches_nothing_is_refused_with_what_there_is():
    message = (
        "'stage' matches no parameter; their paths begin with head, stages/0, stages/1, stem, and "
        "end with bias, kernel, scale"
    )
    with pytest.raises(ValueError, match=message):
        rate_factors(PARAMS, {"stem": 0, "stage": 1})
    with pytest.raises(ValueError, match="every parameter is frozen"):
        rate_factors(PARAMS, {"*": 0})


def test_updates_are_scaled_by_their_own_factor():
    transform = scale_by_factors(rate_factors(PARAMS, {"head": 3}, layer_decay=0.5))
    updates, _ = transform.update(PARAMS, transform.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["head"]["bias"], [3, 3])
    np.testing.assert_array_equal(updates["stages"]["1"]["0"]["branch"]["0"]["norm"]["bias"], 0.5)
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)
