"""The tables of the study, and the document that holds them."""

from collections.abc import Sequence

import numpy as np

from experiments.config import ConfigError
from experiments.recipes import RECIPES
from experiments.recipes.study import CLAIMS, STUDY_ROWS
from experiments.report.study_results import (
    CLASSES,
    SIZE,
    StudyRun,
    judge,
    top1_by_epsilon,
    top1_by_seed,
)
from experiments.report.table import NOT_RUN, Table
from experiments.run.attacks import KINDS
from lrnet_jax import complexity

# Clean, targeted and untargeted top-1 of the paper's Table 9: LR-Net-26 and ResNet-26.
_PAPER_ROBUSTNESS = {
    "study/lrnet_robust": ("52.1", "44.2", "26.8"),
    "study/conv_robust": ("44.9", "37.9", "14.4"),
}


def build_tables(runs: Sequence[StudyRun], abandoned: Sequence[StudyRun]) -> dict[str, Table]:
    """The tables by the names of the parts of the document that hold them.

    Args:
      runs: the runs of the study.
      abandoned: the runs of sweeps that were given up.
    """
    return {
        "claims": claims(runs),
        "systems": systems(runs),
        "robustness": robustness(runs),
        "eps": accuracy_by_epsilon(runs),
        "runs": list_runs(runs),
        "abandoned": list_runs(abandoned),
    }


def fill_document(text: str, tables: dict[str, Table]) -> str:
    """A document with new tables in its marked parts, `<!-- NAME -->` to `<!-- end -->`.

    Raises:
      ConfigError: a part is not marked.
    """
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ConfigError(
                f"the document must have a line {start.strip()!r} and a later line {end!r}"
            )
        text = f"{before}{start}\n{table.markdown()}\n\n{end}{after}"
    return text


def claims(runs: Sequence[StudyRun]) -> Table:
    """Each claim with its difference here and in the paper, and the verdict."""
    rows = []
    for claim in CLAIMS:
        judgement = judge(claim, runs)
        paper = "" if claim.paper is None else f"{claim.paper:+.1f}"
        here = "" if judgement.difference is None else f"{judgement.difference:+.2f}"
        limit = "" if judgement.threshold is None else f"{judgement.threshold:.2f}"
        rows.append((claim.text, here, limit, paper, judgement.verdict))
    columns = ("claim", "difference", "threshold", "paper's difference, ImageNet", "verdict")
    return Table(columns, tuple(rows))


def systems(runs: Sequence[StudyRun]) -> Table:
    """Every system without attack: its size, its mean top-1 and that of each seed, the paper's."""
    rows = []
    for row in STUDY_ROWS:
        top1 = top1_by_seed(runs, row.recipe, "clean")
        cost = complexity.network_cost(RECIPES[row.recipe].model, CLASSES, SIZE)
        rows.append(
            (
                row.label,
                str(row.width),
                f"{cost.macs / 1e6:.2f}",
                f"{cost.parameters / 1e3:.1f}",
                mean_and_deviation(top1),
                ", ".join(f"{value:.2f}" for value in top1),
                row.paper or "",
                row.source,
            )
        )
    columns = ("system", "width", "MACs (M)", "parameters (k)", "top-1", "each seed")
    return Table((*columns, "paper: top-1, ImageNet", "of"), tuple(rows))


def robustness(runs: Sequence[StudyRun]) -> Table:
    """Adversarially trained systems, without attack and under attack at eps 16."""
    measures = ("clean", *KINDS)
    rows = []
    for row in STUDY_ROWS:
        if row.robust:
            top1 = [top1_by_seed(runs, row.recipe, measure) for measure in measures]
            paper = _PAPER_ROBUSTNESS[row.recipe]
            rows.append((row.label, *map(mean_and_deviation, top1), *paper))
    columns = ("system", *measures, *(f"paper: {measure}, ImageNet" for measure in measures))
    return Table(columns, tuple(rows))


def accuracy_by_epsilon(runs: Sequence[StudyRun]) -> Table:
    """Mean top-1 under the untargeted attack at one eps after another."""
    top1 = {row.recipe: top1_by_epsilon(runs, row.recipe) for row in STUDY_ROWS}
    epsilons = sorted({epsilon for found in top1.values() for epsilon in found})
    rows = [
        (
            row.label,
            mean_and_deviation(top1_by_seed(runs, row.recipe, "clean")),
            *(mean_and_deviation(top1[row.recipe].get(epsilon, ())) for epsilon in epsilons),
            str(max(map(len, top1[row.recipe].values()))),
        )
        for row in STUDY_ROWS
        if top1[row.recipe]
    ]
    columns = ("system", "no attack", *(f"eps {epsilon:g}" for epsilon in epsilons), "seeds")
    return Table(columns, tuple(rows))


def list_runs(runs: Sequence[StudyRun]) -> Table:
    """Every run that was started."""
    rows = []
    for run in runs:
        numbers = ("not finished", "", "")
        if run.result is not None:
            top1, loss = f"{run.result.top1:.2f}", f"{run.result.loss:.4f}"
            numbers = (top1, loss, str(len(run.attacked)))
        rows.append((run.recipe, str(run.seed), *numbers, run.config, ", ".join(run.changed)))
    columns = ("recipe", "seed", "top-1", "loss", "attacks")
    return Table((*columns, "configuration", "other than the recipe"), tuple(rows))


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and standard deviation as text; "not run" without values."""
    if not values:
        return NOT_RUN
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else f"{mean} (one seed)"
