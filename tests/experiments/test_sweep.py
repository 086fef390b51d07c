"""Sweeps: what they start, skip, resume and print."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments import sweep as module
from experiments.cli import command_line
from experiments.config import ConfigError
from experiments.recipes import RECIPES
from experiments.run import attacks
from experiments.run.child import Child
from experiments.run.overrides import override
from experiments.run.scores import AttackedScores
from tests.experiments.finished_run import STEP, finish, under_attack


class Silent:
    """A writer of metrics that does nothing."""

    def start(self, run): ...
    def scalars(self, kind, step, values): ...
    def sync(self): ...
    def close(self): ...


def sweep(root, recipes, *arguments):
    """Runs the command; returns its exit code."""
    arguments = [f"--recipes={recipes}", f"--runs={root}", *arguments]
    return module.main(command_line.parse(arguments, module.define_flags))


@pytest.fixture
def started(monkeypatch):
    """The commands that a sweep starts. All finish at once, and one fails."""
    commands = []

    def run(self, command):
        options = dict(word.removeprefix("--").split("=", 1) for word in command[3:])
        # Of a flag that is repeated, `options` has the last value.
        epsilons = [float(word.split("=")[1]) for word in command if word.startswith("--epsilon")]
        options["module"] = command[2]
        commands.append(options)
        if command[2] == "experiments.evaluate":
            attacked = [
                under_attack(1.0, epsilon, step_size, steps)
                for epsilon in epsilons
                for step_size, steps in ((1.0, 20), (2.0, 10))
            ]
            scores = [AttackedScores(options["attack"], STEP, **record) for record in attacked]
            attacks.keep(pathlib.Path(options["run"]), scores)
            return 0
        if options["config"] == "table4/lrnet26_d8":
            return 2
        config = RECIPES[options["config"]]
        for path, text in options.items():
            if path.startswith("config."):
                config = override(config, path.removeprefix("config."), text)
        finish(pathlib.Path(options["workdir"]), config, 12.5)
        return 0

    monkeypatch.setattr(Child, "run", run)
    return commands


def test_a_sweep_runs_what_is_missing_and_ends_with_the_table(tmp_path, capsys, started):
    recipes = "table3/lrnet26_k7,table4/*"
    assert sweep(tmp_path, recipes) == 1
    # table4/lrnet26_d1 is the training of table3/lrnet26_k7.
    assert [pathlib.Path(c["workdir"]).name for c in started] == [
        "lrnet26_k7", "lrnet26_d2", "lrnet26_d4", "lrnet26_d8", "lrnet26_d16",
    ]  # fmt: skip
    printed = capsys.readouterr()
    assert f"[2/6] table4/lrnet26_d1: finished in {tmp_path / 'table3/lrnet26_k7'}" in printed.out
    assert "table4/lrnet26_d8: failed with exit code 2" in printed.out
    assert "| table4/lrnet26_d8 | not run |" in printed.out
    assert "## Table 4" in printed.out
    assert "| 75.7 | 12.5 |" in printed.out
    assert printed.err == "failed: table4/lrnet26_d8\n"

    started.clear()
    sweep(tmp_path, recipes)
    assert [pathlib.Path(c["workdir"]).name for c in started] == ["lrnet26_d8"]


def test_changes_are_for_all_and_checked_first(tmp_path, capsys, started):
    assert sweep(tmp_path, "quickstart,quickstart_conv", "--config.train.epochs=3") == 0
    assert [c["config.train.epochs"] for c in started] == ["3", "3"]
    assert "| quickstart_conv | 12.50 | 99.96 | 0.5000 |" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="kernel_size must be odd"):
        sweep(tmp_path / "other", "quickstart", "--config.model.kernel_size=4")
    assert len(started) == 2


def test_each_training_gets_the_flags_of_watching_which_are_checked_first(tmp_path, started):
    steps, writer = "--profile_steps=10:15", "--writer=tests.experiments.test_sweep:Silent"
    assert sweep(tmp_path, "quickstart,quickstart_conv", steps, writer) == 0
    assert [(c["profile_steps"], c["writer"]) for c in started] == [
        ("10:15", "tests.experiments.test_sweep:Silent")
    ] * 2
    with pytest.raises(ConfigError, match="--profile_steps=15:10 ends before it begins"):
        sweep(tmp_path / "other", "quickstart", "--profile_steps=15:10")
    with pytest.raises(ConfigError, match="has no class or function 'Absent'"):
        sweep(tmp_path / "other", "quickstart", "--writer=tests.experiments.test_sweep:Absent")
    assert len(started) == 2


def test_every_seed_is_a_run_and_whole_seeds_come_first(tmp_path, capsys, started):
    names = ["quickstart", "quickstart_conv"]
    sweep(tmp_path, ",".join(names), "--seeds=0,3")
    expected = [str(tmp_path / seed / name) for seed in ("seed0", "seed3") for name in names]
    assert [c["workdir"] for c in started] == expected
    assert [c["config.seed"] for c in started] == ["0", "0", "3", "3"]
    assert "| quickstart_conv, seed 3 | 12.50 |" in capsys.readouterr().out

    started.clear()
    sweep(tmp_path, ",".join(names), "--seeds=3,0,4")
    assert [c["workdir"] for c in started] == [str(tmp_path / "seed4" / name) for name in names]
    started.clear()
    sweep(tmp_path, "quickstart")  # its own seed is 0
    assert not started


def test_finished_runs_are_attacked_once(tmp_path, started):
    attack = ("--attack=untargeted", "--epsilon=0", "--epsilon=8")
    sweep(tmp_path, "quickstart", "--seeds=0,1", *attack)
    assert [c["module"].removeprefix("experiments.") for c in started] == [
        "train", "evaluate", "train", "evaluate",
    ]  # fmt: skip
    assert started[1]["run"] == str(tmp_path / "seed0/quickstart")
    started.clear()
    sweep(tmp_path, "quickstart", "--seeds=0,1", *attack)
    assert not started
    sweep(tmp_path, "quickstart", "--seeds=1", *attack, "--epsilon=16")
    assert [c["run"] for c in started] == [str(tmp_path / "seed1/quickstart")]


def test_a_signal_goes_to_the_run_and_ends_the_sweep(tmp_path):
    """A sweep of two runs, each a sleep: SIGTERM ends the first and the second is not started."""
    program = f"""
import sys
from experiments import sweep
from experiments.cli import command_line
from experiments.run.child import Child
from experiments.run.scores import AttackedScores

run = Child.run
sleep = "import time; print('up', flush=True); time.sleep(60)"
Child.run = lambda self, command: run(self, [sys.executable, "-c", sleep])
arguments = ["--recipes=quickstart,quickstart_conv", "--runs={tmp_path}"]
sys.exit(sweep.main(command_line.parse(arguments, sweep.define_flags)))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=pathlib.Path.cwd()
    )
    began = time.monotonic()
    while process.stdout.readline() != "up\n":
        assert time.monotonic() - began < 60
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=30)
    assert "stopped; rerun the same command to resume" in printed
    assert "[2/2]" not in printed
    assert process.returncode == 0


def test_the_seed_of_an_attack_is_not_taken_for_seeds_of_runs(tmp_path):
    command = [sys.executable, "-m", "experiments.sweep", "--recipes=quickstart", "--seed=1"]
    done = subprocess.run(
        [*command, f"--runs={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--seed is of an attack; give --attack=untargeted" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_command_names_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="--recipes is missing"):
        module.main(command_line.parse([f"--runs={tmp_path}"], module.define_flags))
