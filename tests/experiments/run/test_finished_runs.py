"""Which finished run represents a recipe."""

import dataclasses

import pytest

from experiments.recipes import RECIPES
from experiments.run.finished_runs import changed_fields, find_match, find_runs
from experiments.run.overrides import override
from tests.experiments.finished_run import finish


def test_the_run_nearest_to_the_recipe_is_taken(tmp_path):
    recipe = RECIPES["table3/lrnet26_k5"]
    finish(tmp_path / "a", dataclasses.replace(recipe, seed=1), 1.0)
    (run, changed) = find_match(recipe, find_runs(tmp_path))
    assert (run.workdir, changed) == (tmp_path / "a", ["seed: 0 -> 1"])
    finish(tmp_path / "b", dataclasses.replace(recipe, recipe="another name"), 2.0)
    (run, changed) = find_match(recipe, find_runs(tmp_path))
    assert (run.workdir, changed) == (tmp_path / "b", [])
    assert find_match(RECIPES["table3/lrnet26_k9"], find_runs(tmp_path)) is None


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("data.data_dir", "/elsewhere"), ("data.workers", "3"), ("model.implementation", "xla"),
        ("model.remat", "stem"), ("train.eval_batch_size", "8"),
        ("train.eval_every_epochs", "0"), ("train.log_every", "7"),
        ("train.checkpoint_every", "7"), ("train.keep_checkpoints", "7"),
    ],
)  # fmt: skip
def test_fields_that_do_not_change_the_result_are_ignored(path, text):
    recipe = RECIPES["lrnet50"]
    changed = override(recipe, path, text)
    assert changed != recipe
    assert changed_fields(recipe, dataclasses.replace(changed, recipe="another name")) == []
