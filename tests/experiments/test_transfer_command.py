"""The comparison of fine-tuning with fresh weights: its runs and its table."""

import json

import pytest

from experiments import config as configs
from experiments import transfer
from experiments.cli.command_line import parse
from experiments.recipes import RECIPES
from experiments.report.transfer_table import transfer_table
from experiments.run.child import Child
from experiments.run.overrides import override_all
from experiments.run.results import FILE
from lrnet_jax.data import open_dataset


@pytest.fixture
def trained(monkeypatch):
    """Replaces trainings by their results: 50 for fresh weights, 80 for others; arguments."""
    commands = []

    def run(self, command):
        options = dict(argument.removeprefix("--").split("=", 1) for argument in command[3:])
        commands.append(options)
        changes = [
            (name.removeprefix("config."), text)
            for name, text in options.items()
            if name.startswith("config.")
        ]
        config = override_all(RECIPES[options["config"]], changes)
        workdir = transfer.pathlib.Path(options["workdir"])
        workdir.mkdir(parents=True)
        (workdir / configs.FILE).write_text(json.dumps(configs.to_dict(config)))
        top1 = (80.0 if config.train.init_from else 50.0) + config.seed
        scores = {"step": 1, "top1": top1, "top5": 100.0, "loss": 1.0, "count": 1000}
        (workdir / FILE).write_text(json.dumps(scores))
        return 0

    monkeypatch.setattr(Child, "run", run)
    return commands


def test_every_seed_is_tuned_from_its_own_pre_training(tmp_path, trained, capsys):
    options = parse([f"--runs={tmp_path}", "--seeds=3,5"], transfer.define_flags)
    assert transfer.main(options) == 0
    assert len(trained) == 10
    for command in trained:
        origin = command.get("config.train.init_from")
        assert (origin is not None) == ("finetune" in command["config"])
        if origin is not None:
            seed = command["config.seed"]
            assert origin == str(tmp_path / f"seed{seed}" / "transfer" / "pretrain")
    printed = capsys.readouterr().out
    assert "| 4 epochs from pre-trained weights | 83.00 | 85.00 | 84.00 |" in printed
    assert "| difference after 40 epochs | 30.00 | 30.00 | 30.00 |" in printed
    assert transfer.main(options) == 0  # all are finished
    assert len(trained) == 10


def test_runs_that_are_missing(tmp_path):
    table = transfer_table(tmp_path / "none", [0])
    assert table.rows[2] == ("difference after 4 epochs", "not run", "not run")


def test_the_trainings_that_are_compared_differ_in_their_weights_alone():
    for length in ("short", "long"):
        tuned, fresh = (RECIPES[f"transfer/{start}_{length}"] for start in ("finetune", "scratch"))
        assert configs.differences(tuned, fresh) == [
            f"recipe: {tuned.recipe} -> {fresh.recipe}",
            "train.init_from: runs/transfer/pretrain -> None",
        ]
    pretrain = RECIPES["transfer/pretrain"]
    assert pretrain.model == tuned.model
    one, other = (open_dataset(config.data.name) for config in (pretrain, tuned))
    assert not {*one.class_names} & {*other.class_names}
    assert (one.num_train, other.num_train) == (5000, 500)
