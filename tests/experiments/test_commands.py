"""The list of the commands."""

import pathlib
import subprocess
import sys

from experiments.__main__ import GROUPS, summary

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
NO_COMMANDS = {"__init__", "__main__", "config"}


def test_every_module_at_the_top_is_a_listed_command():
    listed = sorted(name for commands in GROUPS.values() for name in commands)
    assert listed == sorted({path.stem for path in FOLDER.glob("*.py")} - NO_COMMANDS)


def test_every_command_is_started_by_the_one_command_line():
    for commands in GROUPS.values():
        for name in commands:
            source = (FOLDER / f"{name}.py").read_text()
            assert source.endswith("\n    command_line.run(main, define_flags)\n"), name


def test_the_list_has_a_sentence_for_each_command_and_imports_no_jax():
    program = (
        "import runpy, sys; runpy.run_module('experiments', run_name='__main__'); "
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for commands in GROUPS.values():
        for name in commands:
            assert summary(name).endswith("."), name
            assert f"{name} " in done.stdout
            assert summary(name) in done.stdout


def test_an_argument_is_answered():
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "train"], capture_output=True, text=True
    )
    assert done.stderr == "error: 'train' is not read; type python -m experiments.COMMAND\n"
    assert done.returncode == 2
