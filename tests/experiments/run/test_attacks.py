"""Adversarial training and evaluation under attack, end to end on a network that takes seconds."""

import dataclasses
import json

import pytest

from experiments import config as configs
from experiments.cli import attack_flags, command_line
from experiments.config import ConfigError
from experiments.evaluate import attack_checkpoint, evaluate_checkpoint, open_checkpoint
from experiments.recipes import RECIPES
from experiments.run import attacks
from experiments.run.attacks import Plan
from experiments.run.overrides import override
from experiments.run.scores import AttackedScores
from experiments.train import train
from lrnet_jax.training.attack import Budget
from tests.experiments.finished_run import under_attack
from tests.experiments.tiny_run import tiny


def test_an_adversarial_run_and_its_numbers(tmp_path, monkeypatch):
    attack = {"attack.steps": "2", "attack.mixed": "true"}
    config = tiny(**attack, **{"train.epochs": "0.0016", "train.ema_decay": "0"})
    result = train(config, tmp_path / "run")

    budgets = (Budget(0.0, 1.0, 3), Budget(64.0, 16.0, 6))
    checkpoint = open_checkpoint(str(tmp_path / "run"))
    assert evaluate_checkpoint(checkpoint) == result
    none, strong = attack_checkpoint(checkpoint, Plan("untargeted", budgets))
    assert (none.top1, none.top5, none.count) == (result.top1, result.top5, result.count)
    assert none.loss == pytest.approx(result.loss, rel=1e-5)
    assert strong.loss > result.loss
    assert (strong.kind, strong.step, strong.budget) == ("untargeted", result.step, budgets[1])

    targeted = dataclasses.replace(strong, kind="targeted")
    attacks.keep(tmp_path / "run", [none, strong])
    attacks.keep(tmp_path / "run", [targeted])
    attacks.keep(tmp_path / "run", [dataclasses.replace(targeted, top1=1.0)])
    assert attacks.kept(tmp_path / "run") == [
        none, strong, dataclasses.replace(targeted, top1=1.0),
    ]  # fmt: skip
    attacks.keep(tmp_path, [strong])  # no workdir
    assert attacks.kept(tmp_path) == []


def test_the_keys_of_the_file_stay(tmp_path):
    (tmp_path / configs.FILE).touch()
    attacks.keep(tmp_path, [AttackedScores("targeted", 7, **under_attack(40.0))])
    assert json.loads((tmp_path / attacks.FILE).read_text()) == [
        {"kind": "targeted", "step": 7, "epsilon": 16.0, "step_size": 1.0, "steps": 20, "seed": 0,
         "top1": 40.0, "top5": 99.0, "loss": 2.0, "count": 2000}
    ]  # fmt: skip


def test_mixed_images_are_not_attacked():
    config = override(RECIPES["lrnet26"], "attack.steps", "2")
    with pytest.raises(ConfigError, match=r"use --config\.data\.mixup_alpha=0"):
        override(config, "data.mixup_alpha", "0.2")
    with pytest.raises(ConfigError, match=r"attack\.epsilon must be at least 0, got -1"):
        override(config, "attack.epsilon", "-1")
    with pytest.raises(ConfigError, match=r"attack\.epsilon must be at most 255, .* got 300"):
        override(config, "attack.epsilon", "300")


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
