"""The study: fair rows, and a report that tells what was run and what was not."""

import dataclasses
import json
import pathlib

import pytest

from experiments import config as configs
from experiments import study
from experiments.recipes import RECIPES
from experiments.recipes.study import CLAIMS, CONFIGS, ROWS
from experiments.report import study_results
from experiments.report.study_results import judge
from experiments.run import attacks
from experiments.run.results import FILE as RESULT
from lrnet_jax import complexity


def test_all_rows_have_equal_computation():
    macs = {c.recipe: complexity.network_cost(c.model, 10, 28).macs for c in CONFIGS}
    assert len(macs) == len(ROWS) == 12
    assert max(macs.values()) / min(macs.values()) < 1.05


def test_rows_differ_in_what_they_say_alone():
    """Same images, order, optimiser and length: only the network, and the attack of robust rows."""
    plain = {(c.data, c.optim, c.train, c.attack) for c in CONFIGS if not c.attack.steps}
    robust = {(c.data, c.optim, c.train, c.attack) for c in CONFIGS if c.attack.steps}
    assert (len(plain), len(robust)) == (1, 1)
    for row in ROWS:
        assert bool(RECIPES[row.recipe].attack.steps) == row.robust
    assert len({c.model for c in CONFIGS}) == len(CONFIGS) - 2  # robust rows repeat a network
    named = {row.recipe for row in ROWS}
    assert all({claim.left, claim.right} <= named for claim in CLAIMS)


def start(root, recipe, seed, top1=None, attacked=()):
    """What a run leaves, as far as the study reads it; without top1 it did not finish."""
    workdir = root / f"seed{seed}" / recipe
    workdir.mkdir(parents=True)
    config = dataclasses.replace(RECIPES[recipe], seed=seed)
    (workdir / configs.FILE).write_text(json.dumps(configs.to_dict(config)))
    if top1 is not None:
        result = {"step": 9, "top1": top1, "top5": 99.0, "loss": 0.5, "count": 2000}
        (workdir / RESULT).write_text(json.dumps(result))
        for kind, rows in attacked:
            attacks.keep(workdir, kind, {**result, "attacked": rows})


def under(epsilon, *top1):
    """Numbers at the paper's two budgets; or one, at the budget of the sweep over eps."""
    budgets = ((1.0, 20), (2.0, 10)) if len(top1) == 2 else ((8.0, 10),)
    return [
        {"epsilon": epsilon, "step_size": size, "steps": steps, "seed": 0, "top1": value}
        for (size, steps), value in zip(budgets, top1, strict=True)
    ]


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    for seed, (k7, k3, full) in enumerate(((90, 89.5, 80), (91, 90, 81), (92, 90.5, 82))):
        start(root, "study/lrnet_k7", seed, k7)
        start(root, "study/lrnet_k3", seed, k3)
        start(root, "study/lrnet_full", seed, full)
        start(root, "study/lrnet_m1", seed, k7 + 0.25)
    start(root, "study/conv_k3", 0)
    start(root, "study/lrnet_robust", 0, 70, [
        ("targeted", under(16.0, 60.0, 59.0)),
        ("untargeted", [*under(16.0, 50.0, 51.0), *under(0.0, 70.0), *under(16.0, 1.0)]),
    ])  # fmt: skip
    start(root, "study/conv_robust", 0, 65, [("targeted", under(16.0, 40.0, 45.0))])
    start(root, "quickstart", 0, 88)
    return root


def cells(printed, label):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed.splitlines()
        if line.startswith(f"| {label} |")
    ]


def test_the_report_tells_what_was_run_and_what_was_not(runs, tmp_path, capsys):
    study.main([f"--runs={runs}", f"--docs={tmp_path / 'docs'}", "--nofigures"])
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
    # The run that did not finish is told of; the one that is not of the study is not.
    assert cells(printed, "study/conv_k3")[0][1:3] == ["0", "not finished"]
    assert "quickstart" not in printed
    assert cells(printed, "7x7 is no better than 3x3 for convolutions")[0][-1] == "not run"

    first = (tmp_path / "docs/study/results.json").read_text()
    study.main([f"--docs={tmp_path / 'docs'}", "--nofigures"])  # from the file alone
    assert capsys.readouterr().out == printed
    assert (tmp_path / "docs/study/results.json").read_text() == first

    # Runs of a sweep that was given up are listed, and change nothing else.
    start(tmp_path / "old", "study/lrnet_k7", 7, 10)
    study.main([f"--abandoned={tmp_path / 'old'}", f"--docs={tmp_path / 'docs'}", "--nofigures"])
    (row,) = cells(again := capsys.readouterr().out, "study/lrnet_k7")[3:]
    assert row[1:3] == ["7", "10.00"]
    assert again.startswith(printed[:-1])
    with pytest.raises(SystemExit):
        study.main([f"--runs={tmp_path / 'nowhere'}", f"--docs={tmp_path / 'docs'}"])
    assert "holds no run of the study" in capsys.readouterr().err


def test_claims_are_judged_by_the_rule_that_stands_with_them(runs):
    records = study_results.collect(runs)
    claims = {claim.text: claim for claim in CLAIMS}
    local = judge(claims["local beats full image"], records)
    assert local.difference == 10
    # Standard deviations 1, 0.5, 1, 1 of four rows with 3 seeds each: pooled over 8 degrees of
    # freedom, whose quantile is 2.306 (any table of Student's t).
    deviation = ((1 + 0.25 + 1 + 1) / 4) ** 0.5
    assert local.threshold == pytest.approx(2.306 * deviation * (2 / 3) ** 0.5, rel=1e-4)
    assert local.verdict == "shows"
    assert judge(claims["m = 8 equals m = 1"], records).verdict == "shows"
    kernels = claims["7x7 beats 3x3 for local relations"]
    assert judge(kernels, records).verdict == "cannot be told"
    for kind, left, right, verdict in (
        ("better", "study/lrnet_full", "study/lrnet_k7", "does not show: the opposite does"),
        ("equal", "study/lrnet_full", "study/lrnet_k7", "does not show"),
        ("no better", "study/lrnet_full", "study/lrnet_k7", "shows"),
        ("no better", "study/lrnet_k7", "study/lrnet_full", "does not show"),
    ):
        turned = dataclasses.replace(kernels, kind=kind, left=left, right=right)
        assert judge(turned, records).verdict == verdict
    (targeted,) = (claim for claim in CLAIMS if claim.measure == "targeted")
    assert judge(targeted, records).difference == 59 - 40
    assert judge(targeted, records).verdict == "cannot be told from one seed"
    assert judge(claims["softmax beats none"], records).verdict == "not run"


def test_small_differences_are_below_what_the_images_resolve(tmp_path):
    for seed in range(3):
        start(tmp_path, "study/lrnet_k7", seed, 90.0)
        start(tmp_path, "study/lrnet_k3", seed, 89.5)
    (claim,) = (claim for claim in CLAIMS if claim.right == "study/lrnet_k3")
    assert judge(claim, study_results.collect(tmp_path)).threshold == 0.7


def test_figures_show_every_seed(runs, tmp_path):
    pytest.importorskip("matplotlib")
    from experiments import study_figures

    records = study_results.collect(runs)
    (axis,) = study_figures.draw_accuracy(records).axes
    dots = [line for line in axis.get_lines() if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [3, 3, 3, 3]
    assert axis.get_yticklabels()[0].get_text() == "LR, 7x7"
    for path in study_figures.draw(records, tmp_path):
        assert path.stat().st_size > 5000


def test_the_document_says_what_the_results_do():
    docs = pathlib.Path(__file__).parents[2] / "docs"
    document = (docs / study.DOCUMENT).read_text()
    # Where this fails: python -m experiments.study
    assert study.filled(document, *study.read(docs / study.FOLDER)) == document
