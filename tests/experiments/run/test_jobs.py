"""The jobs of a sweep: which recipes, in which order."""

import pytest

from experiments.config import ConfigError
from experiments.run.jobs import match_recipes, parse_seeds, plan_jobs


def test_patterns_match_recipes():
    assert len(match_recipes(["table3/*"])) == 23
    assert match_recipes(["table8/*", "lrnet50"])[:2] == ["resnet18", "lrnet18"]
    assert match_recipes(["quickstart", "quick*"]) == ["quickstart", "quickstart_conv"]
    with pytest.raises(ConfigError, match="no recipe matches 'table10/"):
        match_recipes(["table3/*", "table10/*"])


def test_seeds_are_whole_numbers():
    assert parse_seeds(["2", "0", "2"]) == [2, 0]
    with pytest.raises(ConfigError, match=r"--seeds must be whole numbers .* got '-1'"):
        parse_seeds(["0", "-1"])


def test_the_seed_is_set_once(tmp_path):
    with pytest.raises(ConfigError, match="both set the seed"):
        plan_jobs(["quickstart"], tmp_path, [("seed", "1")], [2])


def test_changes_are_checked_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="kernel_size must be odd"):
        plan_jobs(["quickstart"], tmp_path, [("model.kernel_size", "4")])
