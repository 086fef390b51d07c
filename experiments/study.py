"""The study of the paper's main claims: its tables and figures, from its results.

    python -m experiments.study                      # from docs/study/results.json
    python -m experiments.study --runs=runs/study    # takes the results from these workdirs first

With --abandoned=DIR it also takes the runs of a sweep that was given up, which are listed and count
for nothing. Prints the tables, writes them into the marked parts of docs/study.md, and draws
docs/study/*.png (pip install -e .[figures]; --nofigures leaves them as they are).
`recipes/study.py` says how the runs are made and by which rule the claims are judged.
"""

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.config import ConfigError
from experiments.recipes import RECIPES
from experiments.recipes.study import CLAIMS, ROWS
from experiments.report import study_figures, study_results
from experiments.report.study_results import CLASSES, SIZE, Record, judge, scores, swept
from experiments.tables import NOT_RUN, Table
from lrnet_jax import complexity

DOCUMENT, FOLDER = "study.md", "study"
RESULTS, ABANDONED = "results.json", "abandoned.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the report and brings the document up to it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--runs", type=pathlib.Path, help="a folder of workdirs to take results from"
    )
    parser.add_argument("--abandoned", type=pathlib.Path, help="likewise, of a sweep given up")
    parser.add_argument("--docs", type=pathlib.Path, default=pathlib.Path("docs"))
    parser.add_argument("--nofigures", action="store_true", help="no figures are drawn")
    options = parser.parse_args(arguments)
    folder = options.docs / FOLDER
    try:
        for root, name in ((options.runs, RESULTS), (options.abandoned, ABANDONED)):
            if root is None:
                continue
            if not (records := study_results.collect(root)):
                raise ConfigError(f"{root} holds no run of the study")
            study_results.write(records, folder / name)
        if not (folder / RESULTS).exists():
            raise ConfigError(f"{folder / RESULTS} does not exist; give --runs=DIR or --docs=DIR")
        results = read(folder)
        print("\n\n".join(table.markdown() for table in tables(*results).values()))
        document = options.docs / DOCUMENT
        if document.exists():
            document.write_text(filled(document.read_text(), *results))
        if not options.nofigures:
            for figure in study_figures.draw(results[0], folder):
                print(figure)
    except ConfigError as error:
        parser.error(str(error))


def read(folder: pathlib.Path) -> tuple[list[Record], list[Record]]:
    """The records that are kept: of the study, and of sweeps that were given up."""
    abandoned = folder / ABANDONED
    return (
        study_results.read(folder / RESULTS),
        study_results.read(abandoned) if abandoned.exists() else [],
    )


def tables(records: Sequence[Record], abandoned: Sequence[Record]) -> dict[str, Table]:
    """The tables, by the names of the parts that hold them."""
    return {
        "claims": claims(records),
        "systems": systems(records),
        "robustness": robustness(records),
        "eps": attacked(records),
        "runs": runs(records),
        "abandoned": runs(abandoned),
    }


def filled(text: str, records: Sequence[Record], abandoned: Sequence[Record]) -> str:
    """A document with the tables in its marked parts: between `<!-- NAME -->` and `<!-- end -->`.

    Raises:
      ConfigError: a part is not marked.
    """
    for name, table in tables(records, abandoned).items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ConfigError(f"the document must have a line {start.strip()!r}, and {end!r} after")
        text = f"{before}{start}\n{table.markdown()}\n\n{end}{after}"
    return text


def systems(records: Sequence[Record]) -> Table:
    """Every row without attack: its size, top-1 over seeds and of each, and the paper's."""
    rows = []
    for row in ROWS:
        top1 = scores(records, row.recipe, "clean")
        cost = complexity.network_cost(RECIPES[row.recipe].model, CLASSES, SIZE)
        rows.append(
            (
                row.label,
                str(row.width),
                f"{cost.macs / 1e6:.2f}",
                f"{cost.parameters / 1e3:.1f}",
                spread(top1),
                ", ".join(f"{value:.2f}" for value in top1),
                row.paper or "",
                row.source,
            )
        )
    columns = ("system", "width", "MACs (M)", "parameters (k)", "top-1", "each seed")
    return Table((*columns, "paper: top-1, ImageNet", "of"), tuple(rows))


def robustness(records: Sequence[Record]) -> Table:
    """The rows of adversarial training, without and under attack at eps 16."""
    paper = {"study/lrnet_robust": ("52.1", "44.2", "26.8"),
             "study/conv_robust": ("44.9", "37.9", "14.4")}  # fmt: skip
    kinds = ("clean", "targeted", "untargeted")
    rows = [
        (row.label, *(spread(scores(records, row.recipe, kind)) for kind in kinds),
         *paper[row.recipe])
        for row in ROWS
        if row.robust
    ]  # fmt: skip
    return Table(("system", *kinds, *(f"paper: {kind}, ImageNet" for kind in kinds)), tuple(rows))


def attacked(records: Sequence[Record]) -> Table:
    """Top-1 under the untargeted attack at one eps after another, the mean over seeds."""
    by_recipe = {row.recipe: swept(records, row.recipe) for row in ROWS}
    budgets = sorted({epsilon for found in by_recipe.values() for epsilon in found})
    rows = [
        (
            row.label,
            spread(scores(records, row.recipe, "clean")),
            *(spread(by_recipe[row.recipe].get(epsilon, ())) for epsilon in budgets),
            str(max(map(len, by_recipe[row.recipe].values()))),
        )
        for row in ROWS
        if by_recipe[row.recipe]
    ]
    columns = ("system", "no attack", *(f"eps {epsilon:g}" for epsilon in budgets), "seeds")
    return Table(columns, tuple(rows))


def claims(records: Sequence[Record]) -> Table:
    """Each claim, its difference here and in the paper, and the verdict."""
    rows = []
    for claim in CLAIMS:
        judgement = judge(claim, records)
        paper = "" if claim.paper is None else f"{claim.paper:+.1f}"
        here = "" if judgement.difference is None else f"{judgement.difference:+.2f}"
        limit = "" if judgement.threshold is None else f"{judgement.threshold:.2f}"
        rows.append((claim.text, here, limit, paper, judgement.verdict))
    columns = ("claim", "difference", "threshold", "paper's difference, ImageNet", "verdict")
    return Table(columns, tuple(rows))


def runs(records: Sequence[Record]) -> Table:
    """Every run that was started."""
    rows = []
    for record in records:
        result = record.result
        numbers = (
            ("not finished", "", "")
            if result is None
            else (f"{result['top1']:.2f}", f"{result['loss']:.4f}", str(len(record.attacked)))
        )
        changed = ", ".join(record.changed)
        rows.append((record.recipe, str(record.seed), *numbers, record.config, changed))
    columns = (
        "recipe",
        "seed",
        "top-1",
        "loss",
        "attacks",
        "configuration",
        "other than the recipe",
    )
    return Table(columns, tuple(rows))


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return NOT_RUN
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else f"{mean} (one seed)"


if __name__ == "__main__":
    main()
