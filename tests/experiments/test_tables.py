"""The printed tables: the paper's numbers beside those of finished runs."""

import csv

import pytest

from experiments import tables
from experiments.cli import command_line
from experiments.config import ConfigError
from experiments.recipes import RECIPES
from experiments.run.overrides import override
from tests.experiments.finished_run import at_paper_budgets, cells, finish, start, under_attack


def run(*arguments):
    tables.main(command_line.parse(arguments, tables.define_flags))


def test_without_runs_every_number_of_ours_is_not_run(tmp_path, capsys):
    run(f"--runs={tmp_path / 'nowhere'}")
    printed = capsys.readouterr().out
    assert printed.count("not run") == 23 + 5 + 6 + 5 + 5 + 6 + 3 * 4
    assert "| lrnet50 | 23.336 | 4.031 | 23.3 | 4.3 |" in printed
    assert cells(printed, "LR-Net-26, 5x5") == [
        ["LR-Net-26, 5x5", "table3/lrnet26_k5", "101", "14.707", "2.370",
         "74.9", "92.3", "not run", "", ""]
    ]  # fmt: skip
    assert cells(printed, "res3") == [
        ["res3", "28 x 28", "[1x1, 128; 3x3 conv, 128; 1x1, 512] x 4",
         "[1x1, 200; 7x7 LR, 200, m=8; 1x1, 512] x 4"]
    ]  # fmt: skip
    for table in printed.split("## ")[1:]:
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_ours_are_printed_beside_the_papers(tmp_path, capsys):
    changed = override(RECIPES["table4/lrnet26_d4"], "train.batch_size", "256")
    moved = override(RECIPES["table3/lrnet26_k7"], "data.data_dir", "/elsewhere")
    finish(tmp_path / "runs/table4/d4", changed, 71.25)
    finish(tmp_path / "runs/a", moved, 75.5)
    finish(tmp_path / "runs/b", RECIPES["quickstart"], 88.0)
    # Attacks with other budgets than the paper's do not count.
    others = [under_attack(1.0, epsilon=8.0), under_attack(9.0, step_size=8.0, steps=10)]
    attacked = {"targeted": [*at_paper_budgets(40.0, 39.0), *others], "untargeted": others}
    finish(tmp_path / "runs/c", RECIPES["table9/lrnet26"], 50.0, attacked)
    (tmp_path / "runs/c/checkpoints/1/config.json").parent.mkdir(parents=True)
    (tmp_path / "runs/c/checkpoints/1/config.json").write_text("not a run of ours")
    start(tmp_path / "runs/d", RECIPES["lrnet50"])

    run(f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}")
    printed = capsys.readouterr().out
    # One training is four rows, wherever its data was and whatever its name.
    assert printed.count(f"| 75.5 | {tmp_path / 'runs/a'} |") == 4
    ours = ["75.7", "92.6", "75.5", "100.0", str(tmp_path / "runs/a")]
    assert cells(printed, "LR-Net-26, 7x7")[0][-5:] == ours
    (row,) = cells(printed, "LR-Net-26, query and key dimension 4")
    assert row[-2:] == ["71.2", f"{tmp_path / 'runs/table4/d4'} (train.batch_size: 1024 -> 256)"]
    (*_, robust) = cells(printed, "LR-Net-26")
    assert robust[2:10] == ["52.1", "44.2", "26.8", "75.7", "50.0", "39.0", "not run", "not run"]
    assert cells(printed, "LR-Net-50")[0][-3:] == ["not run", "", ""]

    with (tmp_path / "out/table4.csv").open() as file:
        records = list(csv.DictReader(file))
    assert [record["top-1"] for record in records] == [
        "75.5", "not run", "71.2", "not run", "not run",
    ]  # fmt: skip
    assert (tmp_path / "out/table9.md").read_text().splitlines()[0].startswith("| system |")


def test_a_run_of_another_version_is_named(tmp_path):
    finish(tmp_path / "old", RECIPES["quickstart"], 1.0)
    (tmp_path / "old/config.json").write_text('{"wings": 2}')
    with pytest.raises(ConfigError, match=r"not a configuration of this version.*; move that run"):
        run(f"--runs={tmp_path}")
