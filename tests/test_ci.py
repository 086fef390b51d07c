"""The legs of `.ci/run`, with a `make` and Pythons that only say what they were asked."""

import pathlib
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / ".ci" / "run"
MAKE = """#!/bin/sh
echo "make $* with $("$PYTHON") in $VENV"
mkdir -p $VENV/bin && ( [ -e $VENV/bin/python ] || cp "$(command -v "$PYTHON")" $VENV/bin/python )
echo "in $PWD with ${JOBS:-2} jobs"
if [ "$1" = docs ] && [ "$SLOW" ]; then
  echo $$ > "$SLOW"
  exec sleep 60
fi
[ "$1" != "$FAILING" ] && exit
while [ "$SLOW" ] && ! [ -s "$SLOW" ]; do sleep 0.05; done
exit 1
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
    "env", "lint", "test", "test-isa ISA=SSE4_2", "test-slow", "test-flax",
    "test-compiled PTXSIM=../shared",
]  # fmt: skip
ONE_PROCESS = [
    "sanitize PROBLEMS=40", "inspect", "test-prepare", "test-wheel", "docs", "test-onnx",
]  # fmt: skip


@pytest.fixture
def ci(tmp_path):
    """Runs the script where only some Pythons are installed: (exit code, lines)."""
    (tmp_path / "tree" / ".ci").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "tree" / ".ci" / "run")
    subprocess.run(["git", "init", "-q", str(tmp_path / "tree")], check=True)
    programs = tmp_path / "bin"
    programs.mkdir()

    def program(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(*arguments, named=(), pyenv=(), failing="", slow="", python=None):
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
                "SLOW": str(slow),
            } | ({"PYTHON": python} if python else {}), capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines() + done.stderr.splitlines()

    # Nothing but these: the machine's own Pythons must not be found.
    tools = "bash cat cp df dirname git mkdir mktemp rm sh sleep tar"
    for tool in tools.split():
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
    made = targets(lines, "3.12", ".venv")
    # What runs beside is printed as one, where it is awaited.
    at = made.index(ONE_PROCESS[0])
    assert made[at : at + len(ONE_PROCESS)] == ONE_PROCESS
    assert made[:at] + made[at + len(ONE_PROCESS) :] == FULL
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
    assert sorted(targets(lines, version, ".venv")) == sorted(FULL + ONE_PROCESS)
    assert len([line for line in lines if line.startswith("make ")]) == len(FULL + ONE_PROCESS)
    assert lines[-3:] == [
        f"full: passed on Python {version}",
        f"quick: NOT RUN, THERE IS NO PYTHON {other} ON THIS MACHINE",
        "next: NOT RUN, THERE IS NO PYTHON 3.13 ON THIS MACHINE",
    ]


def test_no_python(ci):
    code, lines = ci()
    assert code == 1
    assert lines[-1] == "NO PYTHON of 3.12 3.11 3.13 ON THIS MACHINE"


@pytest.mark.parametrize("failing", ["lint", "test-slow", "docs", "test-wheel"])
def test_a_failure_ends_it(ci, failing):
    code, lines = ci(named=["3.11", "3.12"], failing=failing)
    assert code != 0
    assert not [line for line in lines if line.startswith("full: passed")]
    assert targets(lines, "3.12", ".venv")[-1] == failing


def test_a_failure_of_another_leg_ends_it(ci):
    code, lines = ci(named=["3.11", "3.12"], failing="test-fast")
    assert code != 0
    assert targets(lines, "3.11", ".venv-quick")[-1] == "test-fast"
    [copy] = {line.split()[1] for line in lines if line.startswith("in ") and "copy." in line}
    assert not pathlib.Path(copy).exists()  # after a failure too
    assert not [line for line in lines if "passed on" in line]


def test_other_legs_run_in_copies_with_one_job(ci, tmp_path):
    _, lines = ci(named=["3.12", "3.11"])
    places = [
        lines[i + 1].split()[1::2]
        for version, venv in (("3.12", ".venv"), ("3.11", ".venv-quick"))
        for i, line in enumerate(lines)
        if line.startswith("make env ") and line.endswith(f"python{version}  in {venv}")
    ]
    (full, _), (quick, _) = places
    assert full == str(tmp_path / "tree")
    assert quick != full
    assert not pathlib.Path(quick).exists()  # deleted at the end


def test_what_runs_beside_ends_with_a_failure(ci, tmp_path):
    """The foreground fails while `docs` still runs: no process stays behind."""
    pid = tmp_path / "pid"
    code, _ = ci(named=["3.12"], failing="test-slow", slow=pid)
    assert code != 0
    assert not pathlib.Path(f"/proc/{int(pid.read_text())}/exe").exists()


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
