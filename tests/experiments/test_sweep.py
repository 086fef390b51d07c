"""Sweeps: what they start, skip, continue and say."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments import config as configs
from experiments import sweep as module
from experiments.cli import command_line
from experiments.cli.overrides import override
from experiments.config import ConfigError
from experiments.recipes import RECIPES
from experiments.run import attacks
from experiments.run.attacks import Budget, Plan
from experiments.run.results import FILE as RESULT
from experiments.sweep import Child, matching, sweep


def test_patterns_name_recipes():
    assert len(matching(["table3/*"])) == 23
    assert matching(["table8/*", "lrnet50"])[:2] == ["resnet18", "lrnet18"]
    assert matching(["quickstart", "quick*"]) == ["quickstart", "quickstart_conv"]
    with pytest.raises(ConfigError, match="none is named 'table10/"):
        matching(["table3/*", "table10/*"])


@pytest.fixture
def started(monkeypatch):
    """Commands of runs, which finish at once; one of them fails."""
    commands = []

    def run(self, command):
        options = dict(word.removeprefix("--").split("=", 1) for word in command[3:])
        commands.append(options)
        options["module"] = command[2]
        if command[2] == "experiments.evaluate":
            attacked = [
                {"epsilon": e, "step_size": s, "steps": n, "seed": 0, "top1": 1.0}
                for e in (0.0, 8.0)
                for s, n in ((1.0, 20), (2.0, 10))
            ]
            result = {"step": 1, "attacked": attacked}
            attacks.keep(pathlib.Path(options["run"]), options["attack"], result)
            return 0
        name, workdir = options.pop("config"), pathlib.Path(options["workdir"])
        if name == "table4/lrnet26_d8":
            return 2
        config = RECIPES[name]
        for path, text in options.items():
            if path.startswith("config."):
                config = override(config, path.removeprefix("config."), text)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / configs.FILE).write_text(json.dumps(configs.to_dict(config)))
        result = {"step": 1, "top1": 12.5, "top5": 50.0, "loss": 2.0, "count": 8}
        (workdir / RESULT).write_text(json.dumps(result))
        return 0

    monkeypatch.setattr(Child, "run", run)
    return commands


def test_a_sweep_runs_what_is_missing_and_ends_with_the_table(tmp_path, capsys, started):
    names = matching(["table3/lrnet26_k7", "table4/*"])
    assert sweep(names, tmp_path) == ["table4/lrnet26_d8"]
    # table4/lrnet26_d1 is the training of table3/lrnet26_k7.
    assert [pathlib.Path(c["workdir"]).name for c in started] == [
        "lrnet26_k7", "lrnet26_d2", "lrnet26_d4", "lrnet26_d8", "lrnet26_d16",
    ]  # fmt: skip
    said = capsys.readouterr()
    assert f"[2/6] table4/lrnet26_d1: finished in {tmp_path / 'table3/lrnet26_k7'}" in said.out
    assert "| table4/lrnet26_d8 | not run |" in said.out
    assert "## Table 4" in said.out
    assert "| 75.7 | 12.5 |" in said.out
    assert said.err == "failed: table4/lrnet26_d8\n"

    started.clear()
    sweep(names, tmp_path)
    assert [pathlib.Path(c["workdir"]).name for c in started] == ["lrnet26_d8"]


def test_changes_are_for_all_and_checked_first(tmp_path, capsys, started):
    sweep(["quickstart", "quickstart_conv"], tmp_path, [("train.epochs", "3")])
    assert [c["config.train.epochs"] for c in started] == ["3", "3"]
    assert "| quickstart_conv | 12.50 | 50.00 | 2.0000 |" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="kernel_size must be odd"):
        sweep(["quickstart"], tmp_path / "other", [("model.kernel_size", "4")])
    assert len(started) == 2


def test_every_seed_is_a_run_and_whole_seeds_come_first(tmp_path, capsys, started):
    names = ["quickstart", "quickstart_conv"]
    sweep(names, tmp_path, seeds=[0, 3])
    expected = [str(tmp_path / seed / name) for seed in ("seed0", "seed3") for name in names]
    assert [c["workdir"] for c in started] == expected
    assert [c["config.seed"] for c in started] == ["0", "0", "3", "3"]
    assert "| quickstart_conv, seed 3 | 12.50 |" in capsys.readouterr().out

    started.clear()
    sweep(names, tmp_path, seeds=[3, 0, 4])
    assert [c["workdir"] for c in started] == [str(tmp_path / "seed4" / name) for name in names]
    started.clear()
    sweep(["quickstart"], tmp_path)  # its own seed is 0
    assert not started
    with pytest.raises(ConfigError, match="both set the seed"):
        sweep(names, tmp_path, [("seed", "1")], seeds=[2])
    assert module.whole_numbers(["2", "0", "2"]) == [2, 0]
    with pytest.raises(ConfigError, match=r"--seeds must be whole numbers .* got '-1'"):
        module.whole_numbers(["0", "-1"])


def test_finished_runs_are_attacked_once(tmp_path, started):
    budgets = tuple(Budget(e, s, n) for e in (0.0, 8.0) for s, n in ((1.0, 20), (2.0, 10)))
    plan = Plan("untargeted", budgets, 0, ("--attack=untargeted", "--epsilon=0", "--epsilon=8"))
    sweep(["quickstart"], tmp_path, seeds=[0, 1], attack=plan)
    assert [c["module"].removeprefix("experiments.") for c in started] == [
        "train", "evaluate", "train", "evaluate",
    ]  # fmt: skip
    assert started[1]["run"] == str(tmp_path / "seed0/quickstart")
    started.clear()
    sweep(["quickstart"], tmp_path, seeds=[0, 1], attack=plan)
    assert not started
    more = dataclasses.replace(plan, budgets=(*budgets, Budget(16.0, 1.0, 20)))
    sweep(["quickstart"], tmp_path, seeds=[1], attack=more)
    assert [c["run"] for c in started] == [str(tmp_path / "seed1/quickstart")]


def test_a_signal_goes_to_the_run_and_ends_the_sweep(tmp_path):
    """A sweep of two runs, each a sleep: SIGTERM ends the first and nothing starts after it."""
    program = (
        "import sys; from experiments import sweep; run = sweep.Child.run; "
        "sweep.Child.run = lambda self, c: run(self, [sys.executable, '-c', "
        "\"import time; print('up', flush=True); time.sleep(60)\"]); "
        "import pathlib; "
        f"sweep.sweep(['quickstart', 'quickstart_conv'], pathlib.Path({str(tmp_path)!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=pathlib.Path.cwd()
    )
    began = time.monotonic()
    while process.stdout.readline() != "up\n":
        assert time.monotonic() - began < 60
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert "stopped; the same command goes on" in said
    assert "[2/2]" not in said
    assert process.returncode == 0


def test_the_seed_of_an_attack_is_not_taken_for_seeds_of_runs(tmp_path):
    command = [sys.executable, "-m", "experiments.sweep", "--recipes=quickstart", "--seed=1"]
    done = subprocess.run(
        [*command, f"--runs={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--seed is of an attack; give --attack=untargeted" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_command_names_what_is_missing():
    with pytest.raises(ConfigError, match="--recipes is missing; for example --recipes='table3"):
        module.main(command_line.parse([], module.define_flags))
