"""The printed tables: the paper's numbers beside those of finished runs."""

import csv
import dataclasses
import json

import pytest

from experiments import config as configs
from experiments import tables
from experiments.cli.overrides import override
from experiments.recipes import RECIPES
from experiments.report.finished_runs import find_runs, run_of
from experiments.run import attacks
from experiments.run.results import FILE as RESULT


def finish(workdir, config, top1, attacked=()):
    """What a finished run leaves, as far as tables read it."""
    workdir.mkdir(parents=True)
    (workdir / configs.FILE).write_text(json.dumps(configs.to_dict(config)))
    result = {"step": 7, "top1": top1, "top5": 99.96, "loss": 1.0, "count": 10}
    (workdir / RESULT).write_text(json.dumps(result))
    for kind, rows in attacked:
        attacks.keep(workdir, kind, {**result, "attacked": rows})


def cells(printed, label):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed.splitlines()
        if line.startswith(f"| {label} |")
    ]


def test_without_runs_every_number_of_ours_is_not_run(tmp_path, capsys):
    tables.main([f"--runs={tmp_path / 'nowhere'}"])
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


def test_ours_stand_beside_the_papers(tmp_path, capsys):
    changed = override(RECIPES["table4/lrnet26_d4"], "train.batch_size", "256")
    moved = override(RECIPES["table3/lrnet26_k7"], "data.data_dir", "/elsewhere")
    finish(tmp_path / "runs/table4/d4", changed, 71.25)
    finish(tmp_path / "runs/a", moved, 75.5)
    finish(tmp_path / "runs/b", RECIPES["quickstart"], 88.0)
    budgets = [
        {"epsilon": e, "step_size": s, "steps": 1, "seed": 0, "top1": t}
        for e, s, t in ((16.0, 1.0, 40.0), (16.0, 2.0, 39.0), (8.0, 1.0, 1.0))
    ]
    finish(tmp_path / "runs/c", RECIPES["table9/lrnet26"], 50.0, [("targeted", budgets)])
    (tmp_path / "runs/c/checkpoints/1/config.json").parent.mkdir(parents=True)
    (tmp_path / "runs/c/checkpoints/1/config.json").write_text("not a run of ours")
    unfinished = tmp_path / "runs/d"
    finish(unfinished, RECIPES["lrnet50"], 1.0)
    (unfinished / RESULT).unlink()

    tables.main([f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    # One training is four rows, wherever its data lay and under whichever name it ran.
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


def test_the_run_nearest_to_the_recipe_is_taken(tmp_path):
    recipe = RECIPES["table3/lrnet26_k5"]
    finish(tmp_path / "a", dataclasses.replace(recipe, seed=1), 1.0)
    (run, changed) = run_of(recipe, find_runs(tmp_path))
    assert (run.workdir, changed) == (tmp_path / "a", ["seed: 0 -> 1"])
    finish(tmp_path / "b", dataclasses.replace(recipe, recipe="another name"), 2.0)
    (run, changed) = run_of(recipe, find_runs(tmp_path))
    assert (run.workdir, changed) == (tmp_path / "b", [])
    assert run_of(RECIPES["table3/lrnet26_k9"], find_runs(tmp_path)) is None


def test_a_run_of_another_version_is_named(tmp_path, capsys):
    finish(tmp_path / "old", RECIPES["quickstart"], 1.0)
    (tmp_path / "old/config.json").write_text('{"wings": 2}')
    with pytest.raises(SystemExit):
        tables.main([f"--runs={tmp_path}"])
    assert "not a configuration of this version" in capsys.readouterr().err
