"""Prints the tables of the study of the paper's main claims, and draws its figures.

    python -m experiments.study                      # from docs/study/results.json
    python -m experiments.study --runs=runs/study    # reads the results of these workdirs first

The tables are also written into the marked parts of docs/study.md, and the figures to
docs/study/*.png (python -m pip install -e '.[figures]'); --nofigures leaves them as they are.
--abandoned=DIR reads the runs of a sweep that was given up. They are listed and count for nothing.
`recipes/study.py` describes how the runs are made and by which rule the claims are judged.
"""

import pathlib

from absl import flags

from experiments.cli import command_line
from experiments.config import ConfigError
from experiments.report import study_figures, study_results
from experiments.report.study_results import StudyRun
from experiments.report.study_tables import build_tables, fill_document
from experiments.report.table import Table

DOCUMENT, FOLDER = "study.md", "study"
RESULTS, ABANDONED = "results.json", "abandoned.json"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("runs", None, "Folder of workdirs to read.", flag_values=flag_values)
    flags.DEFINE_string(
        "abandoned", None, "Folder of workdirs of a sweep that was given up.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_string("docs", "docs", "Folder of the document.", flag_values=flag_values)
    flags.DEFINE_boolean("figures", True, "Draw the figures.", flag_values=flag_values)


def main(options: flags.FlagValues) -> None:
    """Prints the report and updates the document."""
    docs = pathlib.Path(options.docs)
    for root, name in ((options.runs, RESULTS), (options.abandoned, ABANDONED)):
        if root is not None:
            take_results(pathlib.Path(root), docs / FOLDER / name)
    report(docs, figures=options.figures)


def take_results(root: pathlib.Path, path: pathlib.Path) -> None:
    """Writes the results of the runs below a folder to a file.

    Raises:
      ConfigError: there are none.
    """
    runs = study_results.collect(root)
    if not runs:
        raise ConfigError(f"{root} holds no run of the study")
    study_results.write(runs, path)


def report(docs: pathlib.Path, *, figures: bool) -> None:
    """Prints the tables, writes them into the document, and draws the figures.

    Raises:
      ConfigError: there are no results, the document is not marked, or matplotlib is missing.
    """
    runs, tables = read_results(docs / FOLDER)
    print("\n\n".join(table.markdown() for table in tables.values()))
    document = docs / DOCUMENT
    if document.exists():
        document.write_text(fill_document(document.read_text(), tables))
    if figures:
        for path in study_figures.draw(runs, docs / FOLDER):
            print(path)


def read_results(folder: pathlib.Path) -> tuple[list[StudyRun], dict[str, Table]]:
    """The runs of the study from the files of results, and the tables.

    Raises:
      ConfigError: there are no results.
    """
    results, abandoned = folder / RESULTS, folder / ABANDONED
    if not results.exists():
        raise ConfigError(f"{results} does not exist; give --runs=DIR or --docs=DIR")
    runs = study_results.read(results)
    return runs, build_tables(runs, study_results.read(abandoned) if abandoned.exists() else [])


if __name__ == "__main__":
    command_line.run(main, define_flags)
