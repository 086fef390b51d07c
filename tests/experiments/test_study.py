"""The report of the study: what was run, what was not, and the document."""

import pathlib

import pytest

from experiments import study
from experiments.cli import command_line
from experiments.config import ConfigError
from experiments.report.study_tables import fill_document
from tests.experiments import study_runs
from tests.experiments.finished_run import cells


def report(*arguments):
    study.main(command_line.parse(arguments, study.define_flags))


def test_the_report_has_what_was_run_and_what_was_not(tmp_path, capsys):
    runs = study_runs.make_runs(tmp_path / "runs")
    report(f"--runs={runs}", f"--docs={tmp_path / 'docs'}", "--nofigures")
    printed = capsys.readouterr().out
    (row,) = cells(printed, "LR, 7x7")
    assert row[1:] == ["22", "2.00", "18.1", "91.00 ± 1.00", "90.00, 91.00, 92.00", "75.7",
                       "LR-Net-26, Table 3"]  # fmt: skip
    assert cells(printed, "convolution, 7x7")[0][4:6] == ["not run", ""]
    assert cells(printed, "LR, 7x7, adversarial training")[1:] == [
        ["LR, 7x7, adversarial training", "70.00 (one seed)", "59.00 (one seed)",
         "50.00 (one seed)", "52.1", "44.2", "26.8"],
        ["LR, 7x7, adversarial training", "70.00 (one seed)", "70.00 (one seed)",
         "1.00 (one seed)", "1"],
    ]  # fmt: skip
    assert cells(printed, "convolution, 3x3, adversarial training")[1][3] == "not run"
    # The run that did not finish is listed; the one that is not of the study is not.
    assert cells(printed, "study/conv_k3")[0][1:3] == ["0", "not finished"]
    assert "quickstart" not in printed
    assert cells(printed, "7x7 is no better than 3x3 for convolutions")[0][-1] == "not run"

    first = (tmp_path / "docs/study/results.json").read_text()
    report(f"--docs={tmp_path / 'docs'}", "--nofigures")  # from the file alone
    assert capsys.readouterr().out == printed
    assert (tmp_path / "docs/study/results.json").read_text() == first

    # Runs of a sweep that was given up are listed, and change nothing else.
    study_runs.finish(tmp_path / "old", "study/lrnet_k7", 7, 10)
    report(f"--abandoned={tmp_path / 'old'}", f"--docs={tmp_path / 'docs'}", "--nofigures")
    (row,) = cells(again := capsys.readouterr().out, "study/lrnet_k7")[3:]
    assert row[1:3] == ["7", "10.00"]
    assert again.startswith(printed[:-1])
    with pytest.raises(ConfigError, match="holds no run of the study"):
        report(f"--runs={tmp_path / 'nowhere'}", f"--docs={tmp_path / 'docs'}")


def test_the_document_agrees_with_the_results():
    docs = pathlib.Path(__file__).parents[2] / "docs"
    document = (docs / study.DOCUMENT).read_text()
    _, tables = study.read_results(docs / study.FOLDER)
    # If this fails, run python -m experiments.study
    assert fill_document(document, tables) == document
