"""The progress of a run besides its arrays; every checkpoint stores it."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run.

    The position in the data is not here: it is the step (see `lrnet_jax.data.order`).

    Attributes:
      seconds: spent on this run so far, summed over the processes that resumed one another.
      evaluated: step of the last evaluation, 0 for none.
      best_top1: of all evaluations, percent; None before the first.
      best_step: step of that evaluation.
    """

    seconds: float = 0.0
    evaluated: int = 0
    best_top1: float | None = None
    best_step: int | None = None

    def after_evaluation(self, step: int, top1: float) -> "Progress":
        """The progress after one more evaluation; the earlier of equal ones stays the best."""
        changed = dataclasses.replace(self, evaluated=step)
        if math.isnan(top1) or (self.best_top1 is not None and top1 <= self.best_top1):
            return changed
        return dataclasses.replace(changed, best_top1=top1, best_step=step)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; `Progress(**record)` reads it."""
        return dataclasses.asdict(self)
