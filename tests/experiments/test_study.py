"""The study: fair rows, and a report that tells what was run and what was not."""

from experiments.recipes import RECIPES
from experiments.recipes.study import CLAIMS, CONFIGS, ROWS
from lrnet_jax import complexity


def test_all_rows_have_equal_computation():
    macs = {c.recipe: complexity.count(c.model, 10, 28).macs for c in CONFIGS}
    assert len(macs) == len(ROWS) == 12
    assert max(macs.values()) / min(macs.values()) < 1.05


def test_rows_differ_in_what_they_say_alone():
    """Same images, order, optimiser and length: only the network, and the attack of robust rows."""
    plain = {(c.data, c.optim, c.train, c.attack) for c in CONFIGS if not c.attack.steps}
    robust = {(c.data, c.optim, c.train, c.attack) for c in CONFIGS if c.attack.steps}
    assert (len(plain), len(robust)) == (1, 1)
    for row in ROWS:
        assert bool(RECIPES[row.recipe].attack.steps) == row.robust
    assert len({c.model for c in CONFIGS}) == len(CONFIGS) - 2  # robust rows repeat a network
    named = {row.recipe for row in ROWS}
    assert all({claim.left, claim.right} <= named for claim in CLAIMS)
