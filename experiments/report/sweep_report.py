"""What the jobs of a sweep reached."""

import pathlib
from collections.abc import Sequence

from experiments.recipes.paper_tables import PAPER_ROWS, ROBUST_ROWS
from experiments.report.paper_results import TABLES, TITLES
from experiments.report.table import NOT_RUN, Table
from experiments.run.finished_runs import find_runs
from experiments.run.jobs import Job, finished_run


def describe_sweep(jobs: Sequence[Job], root: pathlib.Path) -> str:
    """A table of the jobs, and the paper's tables that have a row among them, as Markdown."""
    recipes = {job.config.recipe for job in jobs}
    numbers = {str(row.table) for row in PAPER_ROWS if row.recipe in recipes}
    if any(row.recipe in recipes for row in ROBUST_ROWS):
        numbers.add("9")
    runs = find_runs(root)
    return "\n".join(
        [
            f"\n{summarize_jobs(jobs, root).markdown()}\n",
            *(f"## {TITLES[n]}\n\n{TABLES[n](runs).markdown()}\n" for n in sorted(numbers)),
        ]
    )


def summarize_jobs(jobs: Sequence[Job], root: pathlib.Path) -> Table:
    """Top-1, top-5 and loss of each job."""
    rows = []
    for job in jobs:
        run = finished_run(job, root)
        if run is None:
            rows.append((job.name, NOT_RUN, "", "", ""))
        else:
            numbers = (f"{run.scores.top1:.2f}", f"{run.scores.top5:.2f}", f"{run.scores.loss:.4f}")
            rows.append((job.name, *numbers, str(run.workdir)))
    return Table(("recipe", "top-1", "top-5", "loss", "run"), tuple(rows))
