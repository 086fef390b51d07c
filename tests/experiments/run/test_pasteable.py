"""Commands that a shell runs as they are printed."""

import os
import pathlib
import subprocess
import sys

from experiments.run import pasteable


def output_of(command):
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout


def test_the_python_of_this_environment(tmp_path, monkeypatch):
    """Whatever `python` is in the shell, or if there is none."""
    program = "-c 'import sys; print(sys.prefix)'"
    other = tmp_path / "bin"
    other.mkdir()
    (other / "python").write_text("#!/bin/sh\necho another\n")
    (other / "python").chmod(0o755)
    own = pathlib.Path(sys.executable).parent
    for folders in ([own], [other, own], [other]):
        monkeypatch.setenv("PATH", os.pathsep.join(map(str, [*folders, "/usr/bin", "/bin"])))
        assert output_of(f"{pasteable.python()} {program}") == f"{sys.prefix}\n"
    monkeypatch.setenv("PATH", str(own))
    assert pasteable.python() == ("python" if (own / "python").exists() else str(sys.executable))


def test_relative_to_the_folder_one_is_in(monkeypatch):
    monkeypatch.setenv("PATH", "")
    own = pathlib.Path(sys.executable)
    monkeypatch.chdir(own.parent.parent)
    assert pasteable.python() == f"bin/{own.name}"


def test_arguments_are_quoted(monkeypatch):
    monkeypatch.setattr(pasteable, "python", lambda: "python")
    command = pasteable.command("experiments.train", ["--config=table3/*", "--workdir=my runs"])
    assert command == "python -m experiments.train '--config=table3/*' '--workdir=my runs'"


def test_extras_are_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(pasteable, "python", lambda: "python")
    monkeypatch.chdir(pasteable.ROOT)
    assert pasteable.install("figures") == "python -m pip install -e '.[figures]'"
    monkeypatch.chdir(tmp_path)
    assert f"-e '{pasteable.ROOT}[figures]'" in pasteable.install("figures")
    assert (pasteable.ROOT / "pyproject.toml").exists()
