"""The results of the study: a record of every run, and the verdicts on the claims."""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats  # a dependency of jax

from experiments import config as configs
from experiments.config import Config
from experiments.recipes import RECIPES
from experiments.recipes.study import RESOLUTION, STUDY_ROWS, Claim
from experiments.run.finished_runs import changed_fields, find_workdirs, read_scores
from experiments.run.scores import AttackedScores, Scores, top1_at_paper_budgets
from lrnet_jax import complexity

CLASSES, SIZE = 10, 28
SWEEP_STEP_SIZE, SWEEP_STEPS = 8.0, 10  # of the untargeted attack at one eps after another


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """One run of the study; `results.json` has an object with these keys for each.

    Attributes:
      recipe: name of the recipe.
      seed: seed of the run.
      config: first digits of the SHA-256 of the configuration.
      changed: fields in which the run differs from its recipe.
      macs: multiply-adds for an image.
      parameters: number of parameters, as the paper counts them.
      result: scores of the last evaluation; None if the run is not finished.
      attacked: scores under attack at the same step.
    """

    recipe: str
    seed: int
    config: str
    changed: tuple[str, ...]
    macs: int
    parameters: int
    result: Scores | None
    attacked: tuple[AttackedScores, ...] = ()

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "StudyRun":
        """The record of a JSON object."""
        result = record["result"]
        changes = {
            "changed": tuple(record["changed"]),
            "result": None if result is None else Scores.from_dict(result),
            "attacked": tuple(map(AttackedScores.from_dict, record["attacked"])),
        }
        return cls(**{**record, **changes})


def collect(root: pathlib.Path) -> list[StudyRun]:
    """A record of every run of the study below a folder, finished or not.

    Raises:
      ConfigError: a configuration is not one of this version.
    """
    order = [row.recipe for row in STUDY_ROWS]
    configurations = {
        workdir: configs.load(workdir / configs.FILE) for workdir in find_workdirs(root)
    }
    runs = [
        _read_run(workdir, config)
        for workdir, config in configurations.items()
        if config.recipe in order
    ]
    return sorted(runs, key=lambda run: (order.index(run.recipe), run.seed))


def _read_run(workdir: pathlib.Path, config: Config) -> StudyRun:
    recipe = dataclasses.replace(RECIPES[config.recipe], seed=config.seed)
    text = json.dumps(configs.to_dict(config), sort_keys=True)
    cost = complexity.network_cost(config.model, CLASSES, SIZE)
    result, attacked = read_scores(workdir)
    return StudyRun(
        recipe=config.recipe,
        seed=config.seed,
        config=hashlib.sha256(text.encode()).hexdigest()[:12],
        changed=tuple(changed_fields(recipe, config)),
        macs=cost.macs,
        parameters=cost.parameters,
        result=result,
        attacked=attacked,
    )


def write(runs: Iterable[StudyRun], path: pathlib.Path) -> None:
    """Writes records as JSON, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(dataclasses.asdict(run)) for run in runs]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def read(path: pathlib.Path) -> list[StudyRun]:
    """Reads the records that `write` has written."""
    return [StudyRun.from_dict(record) for record in json.loads(path.read_text())]


def top1_by_seed(runs: Iterable[StudyRun], recipe: str, measure: str) -> list[float]:
    """Top-1 in percent of each run of a recipe that has it, ordered as the runs are.

    Args:
      runs: all runs.
      recipe: name of the recipe.
      measure: "clean" for top-1 without attack, or a kind of attack at the paper's two budgets.
    """
    found = []
    for run in runs:
        if run.recipe != recipe or run.result is None:
            continue
        if measure == "clean":
            found.append(run.result.top1)
        elif (top1 := top1_at_paper_budgets(run.attacked, measure)) is not None:
            found.append(top1)
    return found


def top1_by_epsilon(runs: Iterable[StudyRun], recipe: str) -> dict[float, list[float]]:
    """Top-1 of the runs of a recipe under the untargeted attack of the sweep over eps."""
    found: dict[float, list[float]] = {}
    for run in runs:
        for scores in run.attacked if run.recipe == recipe else ():
            budget = (scores.step_size, scores.steps)
            if scores.kind == "untargeted" and budget == (SWEEP_STEP_SIZE, SWEEP_STEPS):
                found.setdefault(scores.epsilon, []).append(scores.top1)
    return dict(sorted(found.items()))


class Deviation(NamedTuple):
    """A pooled standard deviation.

    Attributes:
      value: the standard deviation; NaN without degrees of freedom.
      freedom: its degrees of freedom.
    """

    value: float
    freedom: int


def pooled_deviation(groups: Iterable[Sequence[float]]) -> Deviation:
    """The standard deviation within groups, pooled over them."""
    several = [np.asarray(group) for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in several)
    return Deviation(math.sqrt(squares / freedom) if freedom else math.nan, freedom)


class Judgement(NamedTuple):
    """What the runs show of a claim.

    Attributes:
      difference: mean top-1 of the left system minus that of the right one, in points; None where
        one of them was not run.
      threshold: the least difference that can be told from none, in points; None if unknown.
      verdict: a few words.
    """

    difference: float | None
    threshold: float | None
    verdict: str


def judge(claim: Claim, runs: Sequence[StudyRun]) -> Judgement:
    """Judges a claim by the rule that `Claim` describes."""
    left, right = (top1_by_seed(runs, name, claim.measure) for name in (claim.left, claim.right))
    if not left or not right:
        return Judgement(None, None, "not run")
    robust = {row.recipe: row.robust for row in STUDY_ROWS}
    alike = [name for name in robust if robust[name] == robust[claim.left]]
    deviation = pooled_deviation(top1_by_seed(runs, name, claim.measure) for name in alike)
    difference = float(np.mean(left) - np.mean(right))
    if not deviation.freedom:
        return Judgement(difference, None, "cannot be told from one seed")
    error = deviation.value * math.sqrt(1 / len(left) + 1 / len(right))
    threshold = max(RESOLUTION, float(stats.t.ppf(0.975, deviation.freedom)) * error)
    return Judgement(difference, threshold, _verdict(claim.kind, difference, threshold))


def _verdict(kind: str, difference: float, threshold: float) -> str:
    if kind == "better":
        if abs(difference) <= threshold:
            return "cannot be told"
        return "shows" if difference > 0 else "does not show: the opposite does"
    size = abs(difference) if kind == "equal" else difference
    return "shows" if size <= threshold else "does not show"
