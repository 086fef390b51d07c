"""The figures of the study: a dot for each seed, a line at their mean."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.recipes.study import CLAIMS, STUDY_ROWS, StudyRow
from experiments.report.drawing import new_figure, require_matplotlib
from experiments.report.study_results import (
    SWEEP_STEP_SIZE,
    SWEEP_STEPS,
    StudyRun,
    judge,
    top1_by_epsilon,
    top1_by_seed,
)
from experiments.run.attacks import KINDS

DPI = 200
_LOCAL_RELATION, _CONVOLUTION = "#1f5fa8", "#c0562a"
_MEASURES = ("clean", *KINDS)


def draw(runs: Sequence[StudyRun], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws the results of the runs into a folder.

    Returns:
      The files.

    Raises:
      ConfigError: matplotlib is not installed.
    """
    require_matplotlib(", or give --nofigures")
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    figures = {"accuracy.png": draw_accuracy(runs), "attack.png": draw_attack(runs)}
    with matplotlib.rc_context({"font.size": 8}):
        for name, figure in figures.items():
            # Without matplotlib's version in it, a file changes only when the results do.
            figure.savefig(folder / name, dpi=DPI, metadata={"Software": None})
    return [folder / name for name in figures]


def draw_accuracy(runs: Sequence[StudyRun]) -> Any:
    """Clean top-1 of the regularly trained systems.

    The grey band marks what cannot be told from the 7x7 local relation.
    """
    regular = [
        (row, top1_by_seed(runs, row.recipe, "clean")) for row in STUDY_ROWS if not row.robust
    ]
    shown = [(row, top1) for row, top1 in regular if top1]
    figure = new_figure(0.24 * len(shown) + 0.55)
    axis = figure.subplots()
    for place, (row, top1) in enumerate(shown):
        _mean_and_dots(axis, top1, place, _colour(row))
    reach = judge(CLAIMS[0], runs).threshold
    if reach is not None:
        middle = float(np.mean(top1_by_seed(runs, CLAIMS[0].left, "clean")))
        axis.axvspan(middle - reach, middle + reach, color="#eeeeee", linewidth=0, zorder=0)
    axis.set_yticks(range(len(shown)), labels=[row.label for row, _ in shown], fontsize=7)
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.set_xlabel("top-1 on 2,000 test images (%)", fontsize=7)
    _finish(axis, grid="x")
    return figure


def draw_attack(runs: Sequence[StudyRun]) -> Any:
    """Top-1 under attack: of robust systems at eps 16 (left), of all over eps (right)."""
    figure = new_figure(2.3)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    _draw_robustness(left, runs)
    _draw_over_epsilon(right, runs)
    for axis in (left, right):
        _finish(axis, grid="y")
    return figure


def _draw_robustness(axis: Any, runs: Sequence[StudyRun]) -> None:
    robust = [row for row in STUDY_ROWS if row.robust]
    for offset, row in zip((-0.13, 0.13), robust, strict=True):
        for place, measure in enumerate(_MEASURES):
            top1 = top1_by_seed(runs, row.recipe, measure)
            if top1:
                _mean_and_dots(axis, top1, place + offset, _colour(row), vertical=True)
    axis.set_xticks(range(len(_MEASURES)), labels=_MEASURES, fontsize=7)
    axis.set_xlim(-0.5, len(_MEASURES) - 0.5)
    axis.set_ylabel("top-1 (%)", fontsize=7)
    axis.set_title("adversarially trained, eps 16", fontsize=7)
    axis.margins(y=0.15)


def _draw_over_epsilon(axis: Any, runs: Sequence[StudyRun]) -> None:
    for row in STUDY_ROWS:
        by_epsilon = top1_by_epsilon(runs, row.recipe)
        if not by_epsilon:
            continue
        # The ticks are at equal distances: eps doubles from one to the next, and starts at 0.
        ticks = list(range(len(by_epsilon)))
        means = [float(np.mean(top1)) for top1 in by_epsilon.values()]
        training = "adversarial" if row.robust else "regular"
        label = f"{'convolution 3x3' if _is_convolution(row) else 'LR 7x7'}, {training} training"
        style = "-" if row.robust else "--"
        axis.plot(ticks, means, style, color=_colour(row), linewidth=1, label=label)
        for tick, top1 in zip(ticks, by_epsilon.values(), strict=True):
            _dots(axis, [tick] * len(top1), top1, _colour(row))
        axis.set_xticks(ticks, labels=[f"{epsilon:g}" for epsilon in by_epsilon], fontsize=7)
    axis.set_xlabel("eps of the untargeted attack (of 255)", fontsize=7)
    axis.set_title(f"{SWEEP_STEPS} steps of {SWEEP_STEP_SIZE:g}", fontsize=7)
    if axis.get_lines():
        axis.legend(fontsize=5.5, frameon=False, loc="upper right")
    axis.set_ylim(-2, 100)


def _is_convolution(row: StudyRow) -> bool:
    return "conv" in row.recipe


def _colour(row: StudyRow) -> str:
    return _CONVOLUTION if _is_convolution(row) else _LOCAL_RELATION


def _mean_and_dots(
    axis: Any, values: Sequence[float], place: float, colour: str, vertical: bool = False
) -> None:
    """A dot for each seed and a line across them at their mean."""
    places = [place] * len(values)
    mean = [float(np.mean(values))] * 2
    if vertical:
        axis.plot([place - 0.1, place + 0.1], mean, "-", color=colour, linewidth=1.2)
        _dots(axis, places, values, colour)
    else:
        axis.plot(mean, [place - 0.28, place + 0.28], "-", color=colour, linewidth=1.2)
        _dots(axis, values, places, colour)


def _dots(axis: Any, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    axis.plot(x, y, "o", color=colour, markersize=3, markeredgewidth=0, alpha=0.65)


def _finish(axis: Any, grid: str) -> None:
    axis.grid(axis=grid, linewidth=0.3, color="#cccccc")
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=7, length=2, width=0.4)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_linewidth(0.4)
