"""The command line: flags, help, how commands end, which messages they show."""

import os
import subprocess
import sys

import pytest
from absl import flags

from experiments import evaluate, export, train
from experiments.cli import attack_flags, command_line, config_flags, run_flags
from experiments.config import ConfigError

PROGRAM = """
'''Does nothing of use.'''
import logging
from absl import flags
from experiments.cli import command_line
from lrnet_jax import data

def define_flags(flag_values):
    flags.DEFINE_integer("count", 3, "How many.", flag_values=flag_values)

def main(options):
    {body}

command_line.run(main, define_flags)
"""


def run(body, *arguments):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body), *arguments],
        capture_output=True,
        text=True,
    )


def test_messages_about_replaced_images_are_shown_and_those_of_other_libraries_are_not():
    done = run(
        'logging.getLogger("lrnet_jax.data.imagenet").warning("replaced bad image"); '
        'logging.getLogger("orbax").warning("saving"); logging.warning("something")'
    )
    assert done.returncode == 0
    assert "replaced bad image" in done.stderr
    assert "saving" not in done.stderr
    assert "something" not in done.stderr


@pytest.mark.parametrize("error", ["BadImageError", "DamagedDatasetError", "MissingDatasetError"])
def test_faults_of_the_data_end_in_their_message(error):
    done = run(f'raise data.{error}("image 3 of split train is damaged")')
    assert done.returncode == 2
    assert done.stderr == "error: image 3 of split train is damaged\n"


def test_the_exit_code_is_what_main_returns():
    assert run("return options.count", "--count=4").returncode == 4


def test_a_bug_keeps_its_traceback():
    bug = run("raise KeyError('mine')")
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdri=x"], "Unknown command line flag 'workdri'. Did you mean: workdir"),
        (["--workdir=a", "--workdir=b"], "flag --workdir=b: already defined as a"),
        (["--num_processes=0"], "--num_processes=0: 0 is not a positive integer"),
        (["--config.seed=1", "--config.seed=2"], "--config.seed is given twice, as '1' and '2'"),
        (["--config.seed"], "--config.seed has no value; write --config.seed=VALUE"),
        (["--config.seed", "--workdir=a"], "--config.seed has no value"),
        (["quickstart"], "unexpected argument 'quickstart'; options are written --name=value"),
    ],
)
def test_slips_are_answered_in_one_line(arguments, message):
    with pytest.raises(ConfigError) as raised:
        config_flags.chosen_changes(command_line.parse(arguments, train.define_flags))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_fields_of_the_configuration():
    typed = ["--config=quickstart", "--config.seed", "3", "--config.data.data_dir=a=b"]
    options = command_line.parse(typed, train.define_flags)
    assert config_flags.chosen_changes(options) == [("seed", "3"), ("data.data_dir", "a=b")]
    config = config_flags.chosen_config(options)
    assert (config.recipe, config.seed, config.data.data_dir) == ("quickstart", 3, "a=b")


def test_only_commands_with_a_configuration_take_its_fields():
    with pytest.raises(ConfigError, match=r"Unknown command line flag 'config\.seed'"):
        command_line.parse(["--config.seed=3"], export.define_flags)


@pytest.mark.parametrize("name", ["run", "checkpoint"])
def test_the_run_to_read_has_an_old_name_too(name):
    options = command_line.parse([f"--{name}=runs/a"], evaluate.define_flags)
    assert run_flags.chosen_run(options) == "runs/a"


def test_a_run_must_be_given():
    options = command_line.parse([], evaluate.define_flags)
    with pytest.raises(ConfigError, match="--run is missing; for example --run=runs/lrnet50"):
        run_flags.chosen_run(options)


def test_a_group_is_defined_for_one_command_alone():
    """Two commands with a flag of the same name live in one process."""
    command_line.parse([], attack_flags.define_flags)
    options = command_line.parse(["--seed=5"], attack_flags.define_flags)
    assert options.seed == 5
    assert "seed" not in flags.FLAGS


def test_help_prints_the_docstring_and_the_flags():
    done = run("pass", "--help")
    assert done.returncode == 0
    assert done.stdout == (
        "Does nothing of use.\n\nflags:\n  --count=VALUE\n      How many. (default: 3)\n"
    )


def test_help_into_a_closed_pipe():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body="pass"), "--help"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def into_closed_pipe(body):
    """Exit code and stderr of a command whose reader is gone before it starts."""
    reader, writer = os.pipe()
    os.close(reader)
    # Without a buffer the first line would fail, and not the last flush.
    environment = {key: text for key, text in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        stdout=writer, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("count", [1, 100_000])
def test_a_closed_pipe_ends_a_command_quietly(count):
    assert into_closed_pipe(f"print('x' * {count})") == (141, "")


def test_a_command_that_keeps_printing_does_not_notice_a_closed_pipe():
    body = (
        "import sys; from experiments.cli.stdout import survive_closed_pipes; "
        "survive_closed_pipes(); print('x' * 100_000, flush=True); "
        "print('one'); sys.stderr.write('two'); return 5"
    )
    assert into_closed_pipe(body) == (5, "two")


def test_what_is_printed_unbuffered_stays_in_its_order(tmp_path):
    """Containers often set PYTHONUNBUFFERED."""
    body = (
        "import sys; from experiments.cli.stdout import survive_closed_pipes; "
        "survive_closed_pipes(); sys.stderr.write('one'); sys.stderr.write('\\n'); print('two')"
    )
    with (tmp_path / "both").open("w") as both:
        subprocess.run(
            [sys.executable, "-c", PROGRAM.format(body=body)], stdout=both,
            stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"}, check=True,
        )  # fmt: skip
    assert (tmp_path / "both").read_text() == "one\ntwo\n"


def test_an_interrupt_has_no_traceback():
    done = run("raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_command_may_take_other_arguments():
    def define_flags(flag_values):
        flags.DEFINE_multi_string(command_line.ARGUMENTS, [], "Files.", flag_values=flag_values)
        flags.DEFINE_boolean("all", False, "All.", flag_values=flag_values)

    options = command_line.parse(["a.png", "--all", "--", "--b.png"], define_flags)
    assert options[command_line.ARGUMENTS].value == ["a.png", "--b.png"]
    assert options.all
    assert command_line.parse([], define_flags)[command_line.ARGUMENTS].value == []
