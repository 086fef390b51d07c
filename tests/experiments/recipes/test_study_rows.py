"""The rows of the study are a fair comparison."""

from experiments.recipes import RECIPES
from experiments.recipes.study import CLAIMS, CONFIGS, STUDY_ROWS
from lrnet_jax import complexity


def test_all_rows_have_equal_computation():
    macs = {c.recipe: complexity.network_cost(c.model, 10, 28).macs for c in CONFIGS}
    assert len(macs) == len(STUDY_ROWS) == 12
    assert max(macs.values()) / min(macs.values()) < 1.05


def test_rows_differ_only_in_what_they_declare():
    """Images, order, optimiser and length are the same for all, attacks for all robust rows."""
    plain = {(c.data, c.optim, c.train, c.attack) for c in CONFIGS if not c.attack.steps}
    robust = {(c.data, c.optim, c.train, c.attack) for c in CONFIGS if c.attack.steps}
    assert (len(plain), len(robust)) == (1, 1)
    for row in STUDY_ROWS:
        assert bool(RECIPES[row.recipe].attack.steps) == row.robust
    assert len({c.model for c in CONFIGS}) == len(CONFIGS) - 2  # robust rows repeat a network
    named = {row.recipe for row in STUDY_ROWS}
    assert all({claim.left, claim.right} <= named for claim in CLAIMS)
