"""Commands as a user can paste them: with the Python of this environment."""

import pathlib
import shlex
import shutil
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parent.parent.parent


def python() -> str:
    """How a shell here starts this Python: "python" in an active environment, else its path."""
    own = pathlib.Path(sys.executable)
    found = shutil.which("python")
    if found is not None and pathlib.Path(found).parent.absolute() == own.parent.absolute():
        return "python"
    return shlex.quote(_from_here(own))


def command(module: str, arguments: Sequence[str] = ()) -> str:
    """For example `.venv/bin/python -m experiments.train --config=lrnet50`."""
    return f"{python()} {shlex.join(['-m', module, *arguments])}"


def install(extra: str) -> str:
    """The command that adds an extra of `pyproject.toml` to this environment."""
    checkout = _from_here(ROOT)
    return f"{python()} -m pip install -e {shlex.quote(f'{checkout}[{extra}]')}"


def _from_here(path: pathlib.Path) -> str:
    here = pathlib.Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
