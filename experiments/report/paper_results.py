"""The tables of the paper: its numbers beside those of finished runs."""

import functools
from collections.abc import Callable, Sequence

from experiments.recipes import RECIPES
from experiments.recipes.paper_tables import (
    PAPER_ROWS,
    PAPER_SIZES,
    ROBUST_ROWS,
    PaperRow,
    RobustRow,
)
from experiments.report.network_tables import architecture, model_size, network_sizes
from experiments.report.table import NOT_RUN, Table
from experiments.run.attacks import KINDS
from experiments.run.finished_runs import FinishedRun, Match, find_match
from experiments.run.scores import top1_at_paper_budgets

TITLES = {
    "networks": "Networks",
    "2": "Table 2: architecture",
    "3": "Table 3: aggregation and its scope",
    "4": "Table 4: dimension of queries and keys",
    "5": "Table 5: channels per group",
    "6": "Table 6: similarity and normalisation",
    "7": "Table 7: non-local networks",
    "8": "Table 8: depth",
    "9": "Table 9: top-1 of adversarially trained networks",
}


def accuracy(number: int, runs: Sequence[FinishedRun]) -> Table:
    """One of Tables 3 to 8: top-1 and top-5 beside the paper's.

    Args:
      number: of the table.
      runs: finished runs.
    """
    chosen = [row for row in PAPER_ROWS if row.table == number]
    with_top5 = chosen[0].top5 is not None
    with_sizes = number > 6
    columns = ["system", "recipe", "width", "parameters (M)", "MACs (G)"]
    if with_sizes:
        columns += ["paper: parameters (M)", "paper: FLOPs (G)"]
    columns += ["paper: top-1", "paper: top-5"] if with_top5 else ["paper: top-1"]
    columns += ["top-1", "top-5", "run"] if with_top5 else ["top-1", "run"]
    rows = [_accuracy_cells(row, runs, with_top5, with_sizes) for row in chosen]
    return Table(tuple(columns), tuple(rows))


def _accuracy_cells(
    row: PaperRow, runs: Sequence[FinishedRun], with_top5: bool, with_sizes: bool
) -> tuple[str, ...]:
    config = RECIPES[row.recipe]
    cells = [row.label, row.recipe, str(config.model.width), *model_size(config.model)]
    if with_sizes:
        cells += PAPER_SIZES[row.network]
    cells += [row.top1, row.top5 or ""] if with_top5 else [row.top1]
    match = find_match(config, runs)
    if match is None:
        ours = [NOT_RUN, ""] if with_top5 else [NOT_RUN]
        return (*cells, *ours, "")
    scores = match.run.scores
    ours = [_percent(scores.top1), _percent(scores.top5)] if with_top5 else [_percent(scores.top1)]
    return (*cells, *ours, _run_and_changes(match))


def robustness(runs: Sequence[FinishedRun]) -> Table:
    """Table 9: top-1 of adversarially trained networks, clean and under attack."""
    measures = ("clean", *KINDS, "regular training, clean")
    paper = tuple(f"paper: {measure}" for measure in measures)
    rows = tuple(_robustness_cells(row, runs) for row in ROBUST_ROWS)
    return Table(("system", "recipe", *paper, *measures, "run"), rows)


def _robustness_cells(row: RobustRow, runs: Sequence[FinishedRun]) -> tuple[str, ...]:
    robust = find_match(RECIPES[row.recipe], runs)
    regular = find_match(RECIPES[row.regular_recipe], runs)
    top1: list[float | None] = [None] * 3
    if robust is not None:
        attacked = robust.run.attacked
        top1 = [robust.run.scores.top1, *(top1_at_paper_budgets(attacked, kind) for kind in KINDS)]
    top1.append(None if regular is None else regular.run.scores.top1)
    return (
        row.label, row.recipe, row.clean, row.targeted, row.untargeted, row.regular,
        *(NOT_RUN if value is None else _percent(value) for value in top1),
        "; ".join(_run_and_changes(match) for match in (robust, regular) if match is not None),
    )  # fmt: skip


def _percent(value: float) -> str:
    return f"{value:.1f}"


def _run_and_changes(match: Match) -> str:
    workdir = str(match.run.workdir)
    return f"{workdir} ({', '.join(match.changed)})" if match.changed else workdir


TABLES: dict[str, Callable[[Sequence[FinishedRun]], Table]] = {
    "networks": lambda runs: network_sizes(),
    "2": lambda runs: architecture(),
    **{str(number): functools.partial(accuracy, number) for number in range(3, 9)},
    "9": robustness,
}
