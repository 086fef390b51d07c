"""The legs of `.ci/run`, with a `make` and Pythons that only say what they were asked."""

import pathlib
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / ".ci" / "run"
MAKE = """#!/bin/sh
echo "make $* with $("$PYTHON") in $VENV"
mkdir -p $VENV/bin && cp "$(command -v "$PYTHON")" $VENV/bin/python
[ "$1" != "$FAILING" ]
"""
# Answers what the script asks, else prints its name.
PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) echo {version};;
  *sys.executable*) echo "$0";;
  *) echo "python{version} $*";;
esac
"""
FULL = [
    "env", "lint", "test", "test-isa ISA=SSE4_2", "test-slow", "docs", "sanitize PROBLEMS=100",
    "test-flax", "test-prepare", "test-onnx", "test-wheel", "test-compiled PTXSIM=../shared",
]  # fmt: skip


@pytest.fixture
def ci(tmp_path):
    """Runs the script where only some Pythons are installed: (exit code, lines)."""
    (tmp_path / "tree" / ".ci").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "tree" / ".ci" / "run")
    programs = tmp_path / "bin"
    programs.mkdir()

    def program(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(*arguments, named=(), pyenv=(), failing="", python=None):
        program(programs / "make", MAKE)
        program(programs / "python3", "#!/bin/sh\nexit 127\n")
        for version in named:
            program(programs / f"python{version}", PYTHON.format(version=version))
        for version in pyenv:
            folder = tmp_path / "home" / ".pyenv" / "versions" / f"{version}.1" / "bin"
            program(folder / "python", PYTHON.format(version=version))
        done = subprocess.run(
            ["bash", str(tmp_path / "tree" / ".ci" / "run"), *arguments],
            env={
                "PATH": str(programs), "HOME": str(tmp_path / "home"), "FAILING": failing,
            } | ({"PYTHON": python} if python else {}), capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines() + done.stderr.splitlines()

    # Nothing but these: the machine's own Pythons must not be found.
    for tool in ("bash", "cat", "cp", "dirname", "mkdir", "mktemp", "rm", "sh"):
        (programs / tool).symlink_to(shutil.which(tool))
    return run


def targets(lines, version, venv):
    """What was made with a Python in an environment."""
    start, end = "make ", f" with python{version}  in {venv}"
    return [
        line.removeprefix(start).removesuffix(end)
        for line in lines
        if line.startswith(start) and line.endswith(end)
    ]


def test_all_legs(ci):
    code, lines = ci(named=["3.12"], pyenv=["3.11", "3.13"])
    assert code == 0
    assert targets(lines, "3.12", ".venv") == FULL
    assert targets(lines, "3.11", ".venv-quick") == ["env", "test-fast"]
    assert targets(lines, "3.13", ".venv-next") == ["env", "test-wheel"]
    assert any("python3.13 -m experiments.train --config=quickstart" in line for line in lines)
    assert lines[-3:] == [
        f"{leg}: passed on Python {version}"
        for leg, version in (("full", "3.12"), ("quick", "3.11"), ("next", "3.13"))
    ]


@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_one_python_runs_everything(ci, version):
    code, lines = ci(named=[version])
    other = {"3.11": "3.12", "3.12": "3.11"}[version]
    assert code == 0
    assert targets(lines, version, ".venv") == FULL
    assert len([line for line in lines if line.startswith("make ")]) == len(FULL)
    assert lines[-3:] == [
        f"full: passed on Python {version}",
        f"quick: NOT RUN, THERE IS NO PYTHON {other} ON THIS MACHINE",
        "next: NOT RUN, THERE IS NO PYTHON 3.13 ON THIS MACHINE",
    ]


def test_no_python(ci):
    code, lines = ci()
    assert code == 1
    assert lines[-1] == "NO PYTHON of 3.12 3.11 3.13 ON THIS MACHINE"


@pytest.mark.parametrize("failing", ["lint", "test-slow", "test-wheel"])
def test_a_failure_ends_it(ci, failing):
    code, lines = ci(named=["3.11", "3.12"], failing=failing)
    assert code != 0
    assert not [line for line in lines if line.startswith("full: passed")]
    assert targets(lines, "3.12", ".venv")[-1] == failing


def test_a_single_leg(ci):
    code, lines = ci("quick", named=["3.11", "3.12"])
    assert code == 0
    assert targets(lines, "3.11", ".venv-quick") == ["env", "test-fast"]
    assert len([line for line in lines if line.startswith("make ")]) == 2
    code, lines = ci("next", named=["3.11"])
    assert lines[-1] == "next: NOT RUN, THERE IS NO PYTHON 3.13 ON THIS MACHINE"
    assert ci("soon", named=["3.11"])[0] == 2
    code, lines = ci(named=["3.11", "3.12"], python="python3.12")
    assert code == 0
