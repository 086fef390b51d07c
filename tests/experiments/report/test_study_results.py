"""The results of the study: records on disk and the verdicts on the claims."""

import dataclasses
import json
import pathlib

import pytest

from experiments.recipes.study import CLAIMS
from experiments.report import study_results
from experiments.report.study_results import judge
from experiments.run.scores import AttackedScores, Scores
from tests.experiments import study_runs

STUDY = pathlib.Path(__file__).parents[3] / "docs/study"


@pytest.fixture
def runs(tmp_path):
    return study_results.collect(study_runs.make_runs(tmp_path / "runs"))


def test_claims_are_judged_by_their_rule(runs):
    claims = {claim.text: claim for claim in CLAIMS}
    local = judge(claims["local beats full image"], runs)
    assert local.difference == 10
    # Standard deviations 1, 0.5, 1, 1 of four rows with 3 seeds each: pooled over 8 degrees of
    # freedom, whose quantile is 2.306 (any table of Student's t).
    deviation = ((1 + 0.25 + 1 + 1) / 4) ** 0.5
    assert local.threshold == pytest.approx(2.306 * deviation * (2 / 3) ** 0.5, rel=1e-4)
    assert local.verdict == "shows"
    assert judge(claims["m = 8 equals m = 1"], runs).verdict == "shows"
    kernels = claims["7x7 beats 3x3 for local relations"]
    assert judge(kernels, runs).verdict == "cannot be told"
    for kind, left, right, verdict in (
        ("better", "study/lrnet_full", "study/lrnet_k7", "does not show: the opposite does"),
        ("equal", "study/lrnet_full", "study/lrnet_k7", "does not show"),
        ("no better", "study/lrnet_full", "study/lrnet_k7", "shows"),
        ("no better", "study/lrnet_k7", "study/lrnet_full", "does not show"),
    ):
        turned = dataclasses.replace(kernels, kind=kind, left=left, right=right)
        assert judge(turned, runs).verdict == verdict
    (targeted,) = (claim for claim in CLAIMS if claim.measure == "targeted")
    assert judge(targeted, runs).difference == 59 - 40
    assert judge(targeted, runs).verdict == "cannot be told from one seed"
    assert judge(claims["softmax beats none"], runs).verdict == "not run"


def test_small_differences_are_below_what_the_images_resolve(tmp_path):
    for seed in range(3):
        study_runs.finish(tmp_path, "study/lrnet_k7", seed, 90.0)
        study_runs.finish(tmp_path, "study/lrnet_k3", seed, 89.5)
    (claim,) = (claim for claim in CLAIMS if claim.right == "study/lrnet_k3")
    assert judge(claim, study_results.collect(tmp_path)).threshold == 0.7


@pytest.mark.parametrize("name", ["results.json", "abandoned.json"])
def test_files_are_read_and_written_to_the_byte(tmp_path, name):
    runs = study_results.read(STUDY / name)
    for run, record in zip(runs, json.loads((STUDY / name).read_text()), strict=True):
        assert isinstance(run.result, Scores) or run.result is record["result"] is None
        assert all(isinstance(scores, AttackedScores) for scores in run.attacked)
        assert json.loads(json.dumps(dataclasses.asdict(run))) == record
    study_results.write(runs, tmp_path / name)
    assert (tmp_path / name).read_bytes() == (STUDY / name).read_bytes()
