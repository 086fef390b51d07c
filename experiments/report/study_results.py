"""The results of the study: one record for every run that was started, and what they say."""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats  # comes with jax

from experiments import config as configs
from experiments.recipes import RECIPES
from experiments.recipes.study import RESOLUTION, ROWS, Claim
from experiments.report.finished_runs import changes, find_workdirs
from experiments.run import attacks
from experiments.run.attacks import Budget
from experiments.run.results import read_result
from lrnet_jax import complexity

CLASSES, SIZE = 10, 28
EPSILON = 16.0  # of adversarial training, and of the measures "targeted" and "untargeted"
SWEEP = {"step_size": 8.0, "steps": 10}  # of the untargeted attack at one eps after another


@dataclasses.dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
      recipe: its name.
      seed: its seed.
      config: first digits of the SHA-256 of its configuration.
      changed: what it did otherwise than the recipe does.
      macs: multiply-adds for an image.
      parameters: as the paper counts them.
      result: step, top1, top5 (percent), loss and count; None if the run is not finished.
      attacked: its numbers under attack, see `attacks.kept`.
    """

    recipe: str
    seed: int
    config: str
    changed: tuple[str, ...]
    macs: int
    parameters: int
    result: dict[str, Any] | None
    attacked: tuple[dict[str, Any], ...] = ()


def collect(root: pathlib.Path) -> list[Record]:
    """A record for every run of the study below a folder, also of those that did not finish.

    Raises:
      ConfigError: a configuration is not one of this version.
    """
    known = {row.recipe: place for place, row in enumerate(ROWS)}
    records = []
    for workdir in find_workdirs(root):
        config = configs.load(workdir / configs.FILE)
        if config.recipe not in known:
            continue
        recipe = dataclasses.replace(RECIPES[config.recipe], seed=config.seed)
        text = json.dumps(configs.to_dict(config), sort_keys=True)
        cost = complexity.network_cost(config.model, CLASSES, SIZE)
        result = read_result(workdir)
        kept = attacks.kept(workdir) if result is not None else []
        records.append(
            Record(
                recipe=config.recipe,
                seed=config.seed,
                config=hashlib.sha256(text.encode()).hexdigest()[:12],
                changed=tuple(changes(recipe, config)),
                macs=cost.macs,
                parameters=cost.parameters,
                result=result,
                attacked=tuple(r for r in kept if result and r["step"] == result["step"]),
            )
        )
    return sorted(records, key=lambda r: (known[r.recipe], r.seed))


def write(records: Iterable[Record], path: pathlib.Path) -> None:
    """Keeps records as JSON, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(dataclasses.asdict(record)) for record in records]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def read(path: pathlib.Path) -> list[Record]:
    """The records that `write` kept."""
    records = json.loads(path.read_text())
    return [
        Record(
            **{
                **record,
                "changed": tuple(record["changed"]),
                "attacked": tuple(record["attacked"]),
            }
        )
        for record in records
    ]


def scores(records: Iterable[Record], recipe: str, measure: str) -> list[float]:
    """Top-1 in percent of each run of a recipe that has it, by seed.

    Args:
      records: of all runs.
      recipe: a name.
      measure: "clean"; or a kind of attack, at eps 16 with the paper's two budgets: the lower.
    """
    found = []
    for record in records:
        if record.recipe != recipe or record.result is None:
            continue
        if measure == "clean":
            found.append(record.result["top1"])
            continue
        budgets = [dataclasses.replace(b, epsilon=EPSILON) for b in attacks.PAPER_BUDGETS]
        top1 = [
            r["top1"] for r in record.attacked if r["kind"] == measure and _budget(r) in budgets
        ]
        if len(top1) == len(budgets):
            found.append(min(top1))
    return found


def swept(records: Iterable[Record], recipe: str) -> dict[float, list[float]]:
    """Top-1 of a recipe's runs under the untargeted attack of `SWEEP`, by eps."""
    found: dict[float, list[float]] = {}
    for record in records:
        for r in record.attacked if record.recipe == recipe else ():
            if r["kind"] == "untargeted" and all(r[name] == SWEEP[name] for name in SWEEP):
                found.setdefault(r["epsilon"], []).append(r["top1"])
    return dict(sorted(found.items()))


def pooled(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation within groups, pooled over them, and its degrees of freedom."""
    several = [np.asarray(group) for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in several)
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the runs say of a claim.

    Attributes:
      difference: of the mean top-1 of both systems, in points; None where one was not run.
      threshold: below which a difference is not told from none; None likewise.
      verdict: in words.
    """

    difference: float | None
    threshold: float | None
    verdict: str


def judge(claim: Claim, records: Sequence[Record]) -> Judgement:
    """Judges a claim by the rule that stands with it (`recipes.study.Claim`)."""
    left, right = (scores(records, name, claim.measure) for name in (claim.left, claim.right))
    if not left or not right:
        return Judgement(None, None, "not run")
    robust = {row.recipe: row.robust for row in ROWS}
    alike = [name for name in robust if robust[name] == robust[claim.left]]
    deviation, freedom = pooled(scores(records, name, claim.measure) for name in alike)
    difference = float(np.mean(left) - np.mean(right))
    if not freedom:
        return Judgement(difference, None, "cannot be told from one seed")
    error = deviation * math.sqrt(1 / len(left) + 1 / len(right))
    threshold = max(RESOLUTION, float(stats.t.ppf(0.975, freedom)) * error)
    if claim.kind == "better":
        verdict = "cannot be told"
        if abs(difference) > threshold:
            verdict = "shows" if difference > 0 else "does not show: the opposite does"
    elif claim.kind == "equal":
        verdict = "shows" if abs(difference) <= threshold else "does not show"
    else:
        verdict = "shows" if difference <= threshold else "does not show"
    return Judgement(difference, threshold, verdict)


def _budget(record: dict[str, Any]) -> Budget:
    return Budget(record["epsilon"], record["step_size"], record["steps"])
