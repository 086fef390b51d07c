"""The flags for looking at a run."""

import pytest

from experiments import train
from experiments.cli.command_line import parse
from experiments.cli.watch_flags import chosen_steps, chosen_writers
from experiments.config import ConfigError

MODULE = """
class Whole:
    def start(self, run): ...
    def scalars(self, kind, step, values): ...
    def sync(self): ...
    def close(self): ...

class Half:
    def start(self, run): ...
    def close(self): ...

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "writers_of_a_user.py").write_text(MODULE)
    (tmp_path / "needs_another.py").write_text("import missing_package")
    monkeypatch.syspath_prepend(tmp_path)


def options(*arguments):
    return parse(arguments, train.define_flags)


def check_refused(chosen, argument, message):
    """What a flag chooses is refused in one line."""
    with pytest.raises(ConfigError) as raised:
        chosen(options(argument))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "steps"), [("10:15", [10, 11, 12, 13, 14, 15]), ("7:7", [7]), (None, [])]
)
def test_steps(text, steps):
    assert list(chosen_steps(options(*([f"--profile_steps={text}"] if text else [])))) == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", "must be the first and the last step, such as 10:15; got '10'"),
        ("a:b", "such as 10:15; got 'a:b'"),
        ("-3:5", "such as 10:15; got '-3:5'"),
        ("", "such as 10:15; got ''"),
        ("0:5", "--profile_steps=0:5: steps are numbered from 1 on"),
        ("15:10", "--profile_steps=15:10 ends before it begins; use 10:15"),
    ],
)
def test_bad_steps(text, message):
    check_refused(chosen_steps, f"--profile_steps={text}", message)


def test_writers():
    name = "--writer=writers_of_a_user:Whole"
    made = chosen_writers(options(name, name))
    assert [type(writer).__name__ for writer in made] == ["Whole", "Whole"]
    assert chosen_writers(options()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wandb", "--writer must be MODULE:NAME, such as my_writers:Wandb; got 'wandb'"),
        ("nowhere:Whole", "cannot be imported: No module named 'nowhere'; modules are looked for"),
        ("needs_another:X", "cannot be imported: No module named 'missing_package'"),
        ("writers_of_a_user:Hole", "writers_of_a_user.py has no class or function 'Hole'"),
        ("writers_of_a_user:number", "writers_of_a_user.py has no class or function 'number'"),
        ("writers_of_a_user:Half", "writers_of_a_user:Half has no method scalars, sync; see"),
    ],
)
def test_bad_writers(text, message):
    check_refused(chosen_writers, f"--writer={text}", message)
