"""Finds finished runs below a folder, and the one that stands for a recipe."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from experiments import config as configs
from experiments.config import Config
from experiments.run import attacks
from experiments.run.results import read_result


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      workdir: where it lies.
      config: what it computed.
      result: of its last evaluation: step, top1, top5, loss, count.
      attacked: its numbers under attack, see `attacks.kept`, of the last step only.
    """

    workdir: pathlib.Path
    config: Config
    result: dict[str, Any]
    attacked: tuple[dict[str, Any], ...] = ()


def find_runs(root: pathlib.Path) -> list[Run]:
    """All finished runs below a folder, in the order of their paths; none if there is no folder.

    Raises:
      ConfigError: a finished run's configuration is not one of this version.
    """
    runs = []
    for workdir in find_workdirs(root):
        if (result := read_result(workdir)) is not None:
            config = configs.load(workdir / configs.FILE)
            attacked = tuple(r for r in attacks.kept(workdir) if r["step"] == result["step"])
            runs.append(Run(workdir, config, result, attacked))
    return sorted(runs, key=lambda run: run.workdir)


def find_workdirs(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """All workdirs below a folder, whether their runs are finished or not."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        if configs.FILE in files:
            folders.clear()  # below it are checkpoints
            yield pathlib.Path(folder)


def run_of(recipe: Config, runs: Iterable[Run]) -> tuple[Run, list[str]] | None:
    """The run that stands for a recipe, and what it did otherwise.

    That is any run which computed the same, under whatever name: rows of several tables may be one
    training. Else the run of that name with the fewest changes, as "field: recipe's -> its own".
    """
    found = []
    for run in runs:
        changed = changes(recipe, run.config)
        if not changed or run.config.recipe == recipe.recipe:
            found.append((run, changed))
    return min(found, key=lambda pair: len(pair[1]), default=None)


def changes(recipe: Config, other: Config) -> list[str]:
    """How a configuration computes something else than a recipe."""
    return configs.differences(recipe, other, ignored=configs.SAME_RESULT)
