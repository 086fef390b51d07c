"""Prints the tables of the paper, its numbers beside ours.

    python -m experiments.tables                              # all tables, as Markdown
    python -m experiments.tables --table=3 --table=8 --runs=runs
    python -m experiments.tables --out=tables                 # table3.md, table3.csv, ...

Ours come from the finished runs below --runs. A run that computed what the recipe of a row does
counts under any name. Otherwise the run with the name of the recipe is taken, and the last column
lists the fields in which it differs. A number that no run has is printed as "not run". Numbers
under attack are those that `experiments.evaluate --attack` has stored in the workdir. As in the
paper, the lower accuracy of its two attacks counts.

Parameters and multiply-adds (MACs, at 224 x 224) are counted by `lrnet_jax.complexity`. The paper's
FLOPs of the bottleneck networks are these MACs plus a constant of 0.22 to 0.25 G, which its text
does not explain. Its FLOPs of ResNet-18 match no count.
"""

import pathlib

from absl import flags

from experiments.cli import command_line
from experiments.config import ConfigError
from experiments.report.paper_results import TABLES, TITLES
from experiments.report.table import Table
from experiments.run.finished_runs import find_runs


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("runs", "runs", "Folder of the workdirs.", flag_values=flag_values)
    flags.DEFINE_multi_enum(
        "table", None, list(TABLES), "A table; it may be repeated. All by default.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_string("out", None, "Folder for Markdown and CSV files.", flag_values=flag_values)


def main(options: flags.FlagValues) -> None:
    """Prints the tables, and writes them to files with --out."""
    try:
        runs = find_runs(pathlib.Path(options.runs))
    except ConfigError as error:
        raise ConfigError(f"{error}; move that run out of --runs={options.runs}") from error
    for name in options.table or TABLES:
        table = TABLES[name](runs)
        print(f"## {TITLES[name]}\n\n{table.markdown()}\n")
        if options.out:
            stem = name if name == "networks" else f"table{name}"
            write_files(table, pathlib.Path(options.out), stem)


def write_files(table: Table, folder: pathlib.Path, stem: str) -> None:
    """Writes a table as Markdown and as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.md").write_text(f"{table.markdown()}\n")
    (folder / f"{stem}.csv").write_text(table.csv())


if __name__ == "__main__":
    command_line.run(main, define_flags)
