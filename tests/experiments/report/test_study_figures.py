"""The figures of the study: what they show."""

import pytest

from experiments.report import study_results
from tests.experiments import study_runs


def test_figures_show_every_seed(tmp_path):
    pytest.importorskip("matplotlib")
    from experiments.report import study_figures

    runs = study_results.collect(study_runs.make_runs(tmp_path / "runs"))
    (axis,) = study_figures.draw_accuracy(runs).axes
    dots = [line for line in axis.get_lines() if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [3, 3, 3, 3]
    assert axis.get_yticklabels()[0].get_text() == "LR, 7x7"
    for path in study_figures.draw(runs, tmp_path):
        assert path.stat().st_size > 5000
