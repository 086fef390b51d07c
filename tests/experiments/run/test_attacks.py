"""Adversarial training and evaluation under attack, end to end on a network that takes seconds."""

import json

import pytest

from experiments.cli import attack_flags, command_line
from experiments.cli.overrides import override
from experiments.config import ConfigError
from experiments.evaluate import evaluate_checkpoint
from experiments.recipes import RECIPES
from experiments.run import attacks
from experiments.run.attacks import Budget
from experiments.train import train
from tests.experiments.tiny_run import tiny


def test_an_adversarial_run_and_its_numbers(tmp_path, monkeypatch):
    attack = {"attack.steps": "2", "attack.mixed": "true"}
    config = tiny(**attack, **{"train.epochs": "0.0016", "train.ema_decay": "0"})
    result = train(config, tmp_path / "run")

    budgets = (Budget(0.0, 1.0, 3), Budget(64.0, 16.0, 6))
    attacked = evaluate_checkpoint(str(tmp_path / "run"), attack="untargeted", budgets=budgets)
    none, strong = attacked.pop("attacked")
    assert attacked == result
    assert {name: none[name] for name in ("top1", "top5", "count")} == {
        name: result[name] for name in ("top1", "top5", "count")
    }
    assert none["loss"] == pytest.approx(result["loss"], rel=1e-5)
    assert strong["loss"] > result["loss"]
    assert (strong["epsilon"], strong["step_size"], strong["steps"]) == (64, 16, 6)

    attacks.keep(tmp_path / "run", "untargeted", {**attacked, "attacked": [none, strong]})
    attacks.keep(tmp_path / "run", "targeted", {**attacked, "attacked": [strong]})
    attacks.keep(tmp_path / "run", "targeted", {**attacked, "attacked": [{**strong, "top1": 1}]})
    kept = attacks.kept(tmp_path / "run")
    assert [(r["kind"], r["epsilon"]) for r in kept] == [
        ("untargeted", 0.0), ("untargeted", 64.0), ("targeted", 64.0),
    ]  # fmt: skip
    assert kept[-1]["top1"] == 1
    assert json.dumps(kept)
    attacks.keep(tmp_path, "targeted", {**attacked, "attacked": [strong]})  # no workdir
    assert attacks.kept(tmp_path) == []


def test_mixed_images_are_not_attacked():
    config = override(RECIPES["lrnet26"], "attack.steps", "2")
    with pytest.raises(ConfigError, match=r"use --config\.data\.mixup_alpha=0"):
        override(config, "data.mixup_alpha", "0.2")
    with pytest.raises(ConfigError, match=r"attack\.epsilon must be at least 0, got -1"):
        override(config, "attack.epsilon", "-1")


@pytest.mark.parametrize(
    ("steps", "size", "budgets"),
    [
        (None, None, (Budget(8.0, 1.0, 20), Budget(8.0, 2.0, 10))),
        (40, 0.5, (Budget(8.0, 0.5, 40),)),
        (3, None, None),
        (None, 1.0, None),
    ],
)
def test_budgets_from_the_command_line(steps, size, budgets):
    typed = ["--epsilon=8"]
    typed += [f"--steps={steps}"] * (steps is not None)
    typed += [f"--step_size={size}"] * (size is not None)
    options = command_line.parse(typed, attack_flags.define_flags)
    if budgets is not None:
        assert attack_flags.chosen_budgets(options) == budgets
    else:
        with pytest.raises(ConfigError, match="make one budget; give both or none"):
            attack_flags.chosen_budgets(options)


def test_flags_of_an_attack_need_the_attack():
    options = command_line.parse(["--epsilon=8"], attack_flags.define_flags)
    with pytest.raises(ConfigError, match="--epsilon is of an attack; give --attack=untargeted"):
        attack_flags.chosen_plan(options)
