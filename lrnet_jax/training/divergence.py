"""Notices that a run has gone wrong, from the metrics of its steps."""

import math
from collections.abc import Mapping
from typing import Any


class DivergedError(RuntimeError):
    """A step's loss or gradient is not finite, or its loss is out of bounds."""


def fault(metrics: Mapping[str, Any], max_loss: float | None) -> str | None:
    """What is wrong with the metrics of a step, such as "loss is nan"; None if nothing is.

    Args:
      metrics: with "loss" and "gradient_norm".
      max_loss: a larger loss is a fault too; None for any.
    """
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(metrics[name]):
            return f"{name} is {float(metrics[name])}"
    if max_loss is not None and metrics["loss"] > max_loss:
        return f"loss is {float(metrics['loss']):.6g}, above train.max_loss {max_loss}"
    return None
