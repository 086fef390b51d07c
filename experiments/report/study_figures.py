"""The figures of the study: a dot for each seed, a line at their mean."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.config import ConfigError
from experiments.recipes.study import CLAIMS, ROWS
from experiments.report.study_results import Record, judge, scores, swept

WIDTH = 5.5  # inches, a column of text
DPI = 200
LR, CONV = "#1f5fa8", "#c0562a"  # local relations, convolutions
KINDS = ("clean", "targeted", "untargeted")


def draw(records: Sequence[Record], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws what was run.

    Returns:
      The files.

    Raises:
      ConfigError: no matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(f"{error}; pip install -e '.[figures]', or --nofigures") from error
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"accuracy.png": draw_accuracy(records), "attack.png": draw_attack(records)}
    with matplotlib.rc_context({"font.size": 8}):
        for name, figure in drawn.items():
            # Without the version of matplotlib in the file, so that only results change it.
            figure.savefig(folder / name, dpi=DPI, metadata={"Software": None})
    return [folder / name for name in drawn]


def draw_accuracy(records: Sequence[Record]) -> Any:
    """Clean top-1 of the rows of regular training; grey is what LR 7x7 is not told from."""
    rows = [row for row in ROWS if not row.robust and scores(records, row.recipe, "clean")]
    figure = _figure(0.24 * len(rows) + 0.55)
    axis = figure.subplots()
    for place, row in enumerate(rows):
        colour = CONV if "conv" in row.recipe else LR
        _dots(axis, scores(records, row.recipe, "clean"), place, colour)
    judgement = judge(CLAIMS[0], records)
    if judgement.threshold is not None:
        middle = float(np.mean(scores(records, CLAIMS[0].left, "clean")))
        reach = judgement.threshold
        axis.axvspan(middle - reach, middle + reach, color="#eeeeee", linewidth=0, zorder=0)
    axis.set_yticks(range(len(rows)), labels=[row.label for row in rows], fontsize=7)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel("top-1 on 2,000 test images (%)", fontsize=7)
    _finish(axis, grid="x")
    return figure


def draw_attack(records: Sequence[Record]) -> Any:
    """Left: the rows of adversarial training. Right: top-1 over eps, untargeted."""
    figure = _figure(2.3)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    robust = [row for row in ROWS if row.robust]
    for offset, row in zip((-0.13, 0.13), robust, strict=True):
        colour = CONV if "conv" in row.recipe else LR
        for place, kind in enumerate(KINDS):
            values = scores(records, row.recipe, kind)
            if values:
                _dots(left, values, place + offset, colour, vertical=True)
    left.set_xticks(range(len(KINDS)), labels=KINDS, fontsize=7)
    left.set_xlim(-0.5, len(KINDS) - 0.5)
    left.set_ylabel("top-1 (%)", fontsize=7)
    left.set_title("adversarially trained, eps 16", fontsize=7)
    for row in ROWS:
        by_epsilon = swept(records, row.recipe)
        if not by_epsilon:
            continue
        colour = CONV if "conv" in row.recipe else LR
        budgets = list(by_epsilon)
        means = [float(np.mean(by_epsilon[epsilon])) for epsilon in budgets]
        style = "-" if row.robust else "--"
        # eps in even steps: they double, and start at 0
        ticks = list(range(len(budgets)))
        name = "LR 7x7" if colour == LR else "convolution 3x3"
        label = f"{name}, {'adversarial' if row.robust else 'regular'} training"
        right.plot(ticks, means, style, color=colour, linewidth=1, label=label)
        for tick, epsilon in zip(ticks, budgets, strict=True):
            _scatter(right, [tick] * len(by_epsilon[epsilon]), by_epsilon[epsilon], colour)
        right.set_xticks(ticks, labels=[f"{epsilon:g}" for epsilon in budgets], fontsize=7)
    right.set_xlabel("eps of the untargeted attack (of 255)", fontsize=7)
    right.set_title("10 steps of 8", fontsize=7)
    if right.get_lines():
        right.legend(fontsize=5.5, frameon=False, loc="upper right")
    left.margins(y=0.15)
    right.set_ylim(-2, 100)
    for axis in (left, right):
        _finish(axis, grid="y")
    return figure


def _dots(
    axis: Any, values: Sequence[float], place: float, colour: str, vertical: bool = False
) -> None:
    """A dot for each seed and a line across them at the mean."""
    places = [place] * len(values)
    mean, ends = [float(np.mean(values))] * 2, [place - 0.28, place + 0.28]
    if vertical:
        ends = [place - 0.1, place + 0.1]
        axis.plot(ends, mean, "-", color=colour, linewidth=1.2)
        _scatter(axis, places, values, colour)
    else:
        axis.plot(mean, ends, "-", color=colour, linewidth=1.2)
        _scatter(axis, values, places, colour)


def _scatter(axis: Any, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    axis.plot(x, y, "o", color=colour, markersize=3, markeredgewidth=0, alpha=0.65)


def _finish(axis: Any, grid: str) -> None:
    axis.grid(axis=grid, linewidth=0.3, color="#cccccc")
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=7, length=2, width=0.4)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_linewidth(0.4)


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")
