"""Finds the finished runs below a folder, and the one that represents a recipe."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from experiments import config as configs
from experiments.config import Config
from experiments.run import attacks
from experiments.run.results import read_result
from experiments.run.scores import AttackedScores, Scores


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
      workdir: the folder that holds it.
      config: its configuration.
      scores: of its last evaluation.
      attacked: its evaluations under attack, of the same step.
    """

    workdir: pathlib.Path
    config: Config
    scores: Scores
    attacked: tuple[AttackedScores, ...] = ()


class Match(NamedTuple):
    """The run that represents a recipe.

    Attributes:
      run: the run.
      changed: fields that differ, as "field: value of the recipe -> value of the run".
    """

    run: FinishedRun
    changed: list[str]


def find_runs(root: pathlib.Path) -> list[FinishedRun]:
    """All finished runs below a folder, ordered by path; none if the folder does not exist.

    Raises:
      ConfigError: the configuration of a finished run is not one of this version.
    """
    runs = []
    for workdir in find_workdirs(root):
        scores, attacked = read_scores(workdir)
        if scores is not None:
            config = configs.load(workdir / configs.FILE)
            runs.append(FinishedRun(workdir, config, scores, attacked))
    return sorted(runs, key=lambda run: run.workdir)


def find_workdirs(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """All workdirs below a folder, with finished and unfinished runs."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        if configs.FILE in files:
            folders.clear()  # the folders below a workdir hold checkpoints
            yield pathlib.Path(folder)


def read_scores(workdir: pathlib.Path) -> tuple[Scores | None, tuple[AttackedScores, ...]]:
    """The last evaluation of a run and those under attack of the same step; None if unfinished."""
    scores = read_result(workdir)
    if scores is None:
        return None, ()
    return scores, tuple(found for found in attacks.kept(workdir) if found.step == scores.step)


def find_match(recipe: Config, runs: Iterable[FinishedRun]) -> Match | None:
    """The run that represents a recipe, None if there is none.

    A run that computed the same is taken first, whatever its name: rows of several tables may be
    one training. Otherwise the run of that name with the fewest changed fields is taken.
    """
    found = []
    for run in runs:
        changed = changed_fields(recipe, run.config)
        if not changed or run.config.recipe == recipe.recipe:
            found.append(Match(run, changed))
    return min(found, key=lambda match: len(match.changed), default=None)


def changed_fields(recipe: Config, config: Config) -> list[str]:
    """The fields in which a configuration computes something else than a recipe."""
    return configs.differences(recipe, config, ignored=configs.SAME_RESULT)
