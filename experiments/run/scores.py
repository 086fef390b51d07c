"""The numbers that a finished run has on disk, as records."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Self

from lrnet_jax.training.attack import Budget
from lrnet_jax.training.evaluation import Evaluation

# Table 9 gives eps; the steps are likely those of the work it follows, not certain.
PAPER_BUDGETS: tuple[Budget, ...] = (Budget(16.0, 1.0, 20), Budget(16.0, 2.0, 10))


@dataclasses.dataclass(frozen=True)
class _AtStep:
    """The field of `Scores` that comes first in its records: fields of the last base are first."""

    step: int


@dataclasses.dataclass(frozen=True)
class Scores(Evaluation, _AtStep):
    """The last evaluation of a run, as `result.json` has it: an `Evaluation` and its step.

    Attributes:
      step: the step of the checkpoint that was evaluated.
    """

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The record of a JSON object; keys of other versions are left out."""
        return cls(**_known(cls, record))

    @classmethod
    def at_step(cls, step: int, evaluation: Evaluation) -> Self:
        """The scores of the checkpoint of a step."""
        return cls(step, **dataclasses.asdict(evaluation))


@dataclasses.dataclass(frozen=True)
class _Attacked:
    """The fields of `AttackedScores` that come first in its records."""

    kind: str
    step: int
    epsilon: float
    step_size: float
    steps: int
    seed: int


@dataclasses.dataclass(frozen=True)
class AttackedScores(Evaluation, _Attacked):
    """An `Evaluation` under one attack, as `attacks.json` has it.

    Attributes:
      kind: "targeted" or "untargeted".
      step: the step of the checkpoint that was evaluated.
      epsilon: how far a pixel may move, in levels of 255.
      step_size: length of one step of the attack, in levels of 255.
      steps: number of steps of the attack.
      seed: seed of the attack's random starts and targets.
    """

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The record of a JSON object; keys of other versions are left out."""
        return cls(**_known(cls, record))

    @property
    def budget(self) -> Budget:
        """What the attack was allowed."""
        return Budget(self.epsilon, self.step_size, self.steps)


def _known(kind: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a record's fields."""
    return {field.name: record[field.name] for field in dataclasses.fields(kind)}


def top1_at_paper_budgets(attacked: Iterable[AttackedScores], kind: str) -> float | None:
    """Top-1 under an attack as Table 9 of the paper reports it, in percent.

    The paper makes two attacks of 16 levels, 20 steps of 1 and 10 steps of 2, and reports the lower
    accuracy. Attacks with other budgets do not count.

    Returns:
      The lower top-1; None unless both attacks of this kind were made.
    """
    top1: dict[Budget, list[float]] = {budget: [] for budget in PAPER_BUDGETS}
    for scores in attacked:
        if scores.kind == kind and scores.budget in top1:
            top1[scores.budget].append(scores.top1)
    if not all(top1.values()):
        return None
    return min(min(values) for values in top1.values())
