"""Traces of steps in a workdir: which may be asked for, and how to look at them."""

import pathlib
import shlex
from collections.abc import Iterator

from experiments.config import ConfigError
from experiments.run import pasteable

FOLDER = "profile"  # in a workdir
MOST = 100  # steps of a trace; viewers show a million events


def check_steps(steps: range, total: int) -> None:
    """Refuses steps to trace that a run does not have.

    Raises:
      ConfigError: they go beyond the last one, or are too many.
    """
    if len(steps) > MOST:
        raise ConfigError(
            f"--profile_steps: {len(steps)} steps make a trace that no viewer opens; use "
            f"{steps.start}:{steps.start + 5}, or {MOST} at most"
        )
    if steps and steps[-1] > total:
        raise ConfigError(
            f"--profile_steps ends with step {steps[-1]}, and the run has {total} steps"
        )


def describe_past(steps: range, step: int) -> Iterator[str]:
    """A line for a run that is resumed behind the steps to trace."""
    if steps and step >= steps[-1]:
        yield f"--profile_steps: step {steps[-1]} was taken before; nothing is traced"


def describe_trace(steps: str, workdir: pathlib.Path) -> Iterator[str]:
    """How to look at a trace, in lines."""
    folder = workdir / FOLDER
    python = pasteable.python()
    yield f"trace of {steps}: {folder}; to look at it"
    yield (
        f"  in a browser: {python} -m pip install xprof && "
        f"{python} -m xprof.server --logdir={shlex.quote(str(folder))}"
    )
    newest = max(folder.rglob("perfetto_trace.json.gz"), default=None)
    yield f"  or open {newest} at https://ui.perfetto.dev"
