"""The table of `experiments.transfer`: fine-tuning beside training from fresh weights."""

import pathlib
import statistics
from collections.abc import Sequence

from experiments.recipes.finetune import LONG, SHORT
from experiments.report.table import NOT_RUN, Table
from experiments.run.finished_runs import find_runs


def transfer_table(root: pathlib.Path, seeds: Sequence[int]) -> Table:
    """Top-1 of each seed, the mean, and the difference between two rows.

    Args:
      root: folder of the runs.
      seeds: columns of the table.
    """
    found = {(run.config.recipe, run.config.seed): run.scores.top1 for run in find_runs(root)}
    rows: dict[str, list[float | None]] = {}
    for length, epochs in (("short", SHORT), ("long", LONG)):
        tuned, fresh = (
            [found.get((f"transfer/{start}_{length}", seed)) for seed in seeds]
            for start in ("finetune", "scratch")
        )
        rows[f"{epochs:g} epochs from pre-trained weights"] = tuned
        rows[f"{epochs:g} epochs from fresh weights"] = fresh
        rows[f"difference after {epochs:g} epochs"] = [
            None if one is None or other is None else one - other
            for one, other in zip(tuned, fresh, strict=True)
        ]
    columns = ("top-1 in %", *(f"seed {seed}" for seed in seeds), "mean")
    return Table(columns, tuple((label, *_cells(row)) for label, row in rows.items()))


def _cells(numbers: Sequence[float | None]) -> list[str]:
    """The numbers, and their mean if all are there."""
    known = [number for number in numbers if number is not None]
    mean = statistics.mean(known) if known and len(known) == len(numbers) else None
    return [NOT_RUN if number is None else f"{number:.2f}" for number in (*numbers, mean)]
