"""The report of an evaluation: a page, its pictures, and tables for spreadsheets."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.report.drawing import new_figure
from experiments.report.page import (
    CARDS_BEGIN,
    CARDS_END,
    Page,
    bars,
    card,
    drawing,
    escape,
    heading,
    open_page,
    percent,
    picture,
    table,
)
from experiments.report.table import Table
from experiments.run.new_folder import new_folder
from experiments.run.outcomes import Mistake, Outcomes
from experiments.run.real_labels import RealScore
from experiments.run.results import describe_result
from experiments.run.scores import Scores
from lrnet_jax.training.metrics import (
    Calibration,
    ClassScores,
    calibration,
    class_scores,
    confusion,
)

PAGE = "report.html"
LABELLED = 40  # classes whose names fit beside a picture
NUMBERED = 12  # classes whose numbers fit into it
LISTED = 100  # classes in the table of the page
PAIRS = 20
CELLS = 100  # rows of the picture of confusions
DPI = 150


class Report(NamedTuple):
    """What is reported.

    Attributes:
      title: of the page.
      notes: sentences about the images and classes.
      scores: of all images.
      outcomes: image by image.
      matrix: of `confusion`.
      by_class: scores of each class.
      calibration: of the confidence.
      image_name: names an image by its place in the split.
      real: the score on reassessed labels, None without them.
    """

    title: str
    notes: tuple[str, ...]
    scores: Scores
    outcomes: Outcomes
    matrix: np.ndarray
    by_class: ClassScores
    calibration: Calibration
    image_name: Callable[[int], str]
    real: RealScore | None

    def summary(self) -> dict[str, Any]:
        """The numbers of all images as JSON types. Means over classes leave out those without."""
        means = {
            f"mean_{name}": float(np.nanmean(getattr(self.by_class, name)))
            for name in ("precision", "recall", "f1")
        }
        real = {} if self.real is None else self.real._asdict()
        return {**means, "calibration_error": self.calibration.error, **real}


def make_report(
    title: str,
    notes: tuple[str, ...],
    step: int,
    outcomes: Outcomes,
    image_name: Callable[[int], str],
    real: RealScore | None = None,
) -> Report:
    """Computes what is reported; see `Report`."""
    matrix = confusion(outcomes.label, outcomes.predicted, len(outcomes.classes))
    return Report(
        title,
        notes,
        outcomes.scores(step),
        outcomes,
        matrix,
        class_scores(matrix),
        calibration(outcomes.confidence, outcomes.right),
        image_name,
        real,
    )


def write_report(folder: pathlib.Path, report: Report) -> None:
    """Writes a report.

    Args:
      folder: does not exist yet; it appears when it is complete.
      report: to write.
    """
    with new_folder(folder, "report") as part:
        part.mkdir()
        scores = dataclasses.asdict(report.scores)
        summary = {"notes": report.notes, **scores, **report.summary()}
        (part / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        (part / "classes.csv").write_text(class_table(report, _plain).csv())
        (part / "confusion.csv").write_text(_matrix_table(report).csv())
        (part / "predictions.csv").write_text(_predictions(report).csv())
        figures = {
            "confusion.png": draw_confusion(report.matrix, report.outcomes.classes),
            "calibration.png": draw_calibration(report.calibration),
        }
        for name, figure in figures.items():
            figure.savefig(part / name, dpi=DPI)
        with open_page(part / PAGE, report.title, describe_result(report.scores)) as page:
            _write_page(page, report, figures)


def _write_page(page: Page, report: Report, figures: dict[str, Any]) -> None:
    for note in report.notes:
        page.write(f"<p>{escape(note)}</p>")
    page.write(table(_summary_table(report)))
    page.write(heading("Surest and wrong", "The images of which the network was surest, wrongly."))
    page.write(CARDS_BEGIN)
    for mistake in report.outcomes.mistakes:
        page.write(_mistake_card(report, mistake))
    page.write(CARDS_END)
    page.write(heading("Confusions", "Rows are labels, columns predictions, as shares of a row."))
    page.write(drawing(figures["confusion.png"], "Matrix of confusions"))
    page.write(heading("Most frequent confusions"))
    page.write(table(_pairs(report)))
    page.write(
        heading(
            "Calibration",
            "How often the network is right where it is so sure. On the diagonal it is as often "
            "right as it says.",
        )
    )
    page.write(drawing(figures["calibration.png"], "Accuracy against confidence"))
    count = len(report.outcomes.classes)
    shown = "" if count <= LISTED else f" The {LISTED} worst of {count}; classes.csv has all."
    page.write(heading("Classes", f"From the lowest F1 to the highest.{shown}"))
    page.write(table(class_table(report, percent, worst_first=True)))


def _summary_table(report: Report) -> Table:
    scores, summary = report.scores, report.summary()
    rows = [
        ("images", f"{scores.count}"),
        ("top-1", f"{scores.top1:.2f} %"),
        ("top-5", f"{scores.top5:.2f} %"),
        ("loss", f"{scores.loss:.4f} nats"),
        ("mean precision of the classes", percent(summary["mean_precision"])),
        ("mean recall of the classes", percent(summary["mean_recall"])),
        ("mean F1 of the classes", percent(summary["mean_f1"])),
        ("expected calibration error (15 bins)", percent(summary["calibration_error"])),
    ]
    if report.real is not None:
        top1, count = report.real
        rows.append(("top-1 on reassessed labels (ReaL)", f"{top1:.2f} % of {count} images"))
    return Table(("all images", ""), tuple(rows))


def class_table(
    report: Report, shown: Callable[[float], str], *, worst_first: bool = False
) -> Table:
    """The scores of the classes, in the order of their labels, or some of the worst.

    Args:
      report: of the evaluation.
      shown: a share as text.
      worst_first: whether the first `LISTED` by F1 are shown, without classes that have none.
    """
    scores = report.by_class
    order = np.arange(len(scores.images))
    if worst_first:
        order = np.argsort(scores.f1, kind="stable")[:LISTED]  # NaN comes last
    rows = tuple(
        (
            str(label),
            report.outcomes.classes[label],
            str(scores.images[label]),
            *("" if np.isnan(x) else shown(x)
              for x in (scores.precision[label], scores.recall[label], scores.f1[label])),
        )
        for label in order
    )  # fmt: skip
    return Table(("label", "class", "images", "precision", "recall", "F1"), rows)


def _plain(share: float) -> str:
    return f"{share:.6f}"


def _matrix_table(report: Report) -> Table:
    classes = report.outcomes.classes
    rows = tuple((name, *map(str, row)) for name, row in zip(classes, report.matrix, strict=True))
    return Table(("label / prediction", *classes), rows)


def _predictions(report: Report) -> Table:
    outcomes = report.outcomes
    rows = tuple(
        (
            report.image_name(index),
            outcomes.classes[label],
            outcomes.classes[predicted],
            f"{confidence:.6f}",
            f"{loss:.6f}",
        )
        for index, (label, predicted, confidence, loss) in enumerate(
            zip(outcomes.label, outcomes.predicted, outcomes.confidence, outcomes.loss, strict=True)
        )
    )
    return Table(("image", "label", "prediction", "confidence", "loss"), rows)


def _pairs(report: Report) -> Table:
    wrong = report.matrix - np.diag(np.diag(report.matrix))
    places = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    classes = report.outcomes.classes
    rows = []
    for label, predicted in zip(*np.unravel_index(places, wrong.shape), strict=True):
        if count := wrong[label, predicted]:
            share = percent(count / report.by_class.images[label])
            rows.append((classes[label], classes[predicted], str(count), share))
    return Table(("label", "taken for", "images", "of the label's"), tuple(rows))


def _mistake_card(report: Report, mistake: Mistake) -> str:
    classes = report.outcomes.classes
    name, label = report.image_name(mistake.position), classes[mistake.label]
    rows = [(classes[guess], share) for guess, share in mistake.guesses]
    if all(guess != mistake.label for guess, _ in mistake.guesses):
        rows.append((label, mistake.share))
    return card(
        name,
        picture(mistake.image, f"{name}, {label}, taken for {rows[0][0]}"),
        bars(rows, marked=rows[0][0]),
        note=f"labelled {label}",
    )


def draw_confusion(matrix: np.ndarray, classes: tuple[str, ...]) -> Any:
    """The matrix as shares of its rows, with names and numbers where they fit.

    Of many classes, neighbours are added up, because single ones would be too small to see.
    """
    count = len(classes)
    block = -(-count // CELLS)
    matrix = add_blocks(matrix, block)
    figure = new_figure(5.5 if count > NUMBERED else 4.8)
    axes = figure.subplots()
    with np.errstate(invalid="ignore"):
        shares = matrix / matrix.sum(1, keepdims=True)
    side = block * len(matrix) - 0.5
    shown = axes.imshow(
        np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1, extent=(-0.5, side, side, -0.5)
    )
    each = f", {block} classes a cell" if block > 1 else ""
    axes.set_xlabel(f"prediction{each}")
    axes.set_ylabel(f"label{each}")
    if count <= LABELLED:
        size = 8 if count <= NUMBERED else 5
        axes.set_xticks(range(count), classes, rotation=90, fontsize=size)
        axes.set_yticks(range(count), classes, fontsize=size)
    if count <= NUMBERED:
        for (row, column), number in np.ndenumerate(matrix):
            if number:
                dark = shares[row, column] > 0.5
                axes.text(
                    column, row, str(number), ha="center", va="center", fontsize=7,
                    color="white" if dark else "black",
                )  # fmt: skip
    figure.colorbar(shown, ax=axes, label="share of the label's images", shrink=0.8)
    return figure


def add_blocks(matrix: np.ndarray, block: int) -> np.ndarray:
    """The sums of squares of `block` rows and columns; the last may be smaller."""
    starts = np.arange(0, len(matrix), block)
    return np.add.reduceat(np.add.reduceat(matrix, starts, 0), starts, 1)


def draw_calibration(found: Calibration) -> Any:
    """Accuracy against confidence, above the share of images in each bin."""
    figure = new_figure(4.8)
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    width = np.diff(found.edges)
    above.bar(
        found.edges[:-1], np.nan_to_num(found.accuracy), width, align="edge", color="#6ea3d8",
        edgecolor="white", label="accuracy",
    )  # fmt: skip
    filled = found.images > 0
    above.plot(
        found.confidence[filled], found.accuracy[filled], "o", color="#1f4e79", markersize=4,
        label="mean confidence of the bin",
    )  # fmt: skip
    above.plot(
        [0, 1], [0, 1], color="#6b6b66", linewidth=1, linestyle="--", label="as sure as right"
    )
    above.set_ylabel("accuracy")
    above.set_title(f"expected calibration error {100 * found.error:.1f} %", fontsize=10)
    above.legend(fontsize=8, loc="upper left")
    share = found.images / max(1, found.images.sum())
    below.bar(found.edges[:-1], share, width, align="edge", color="#c9c8c0", edgecolor="white")
    below.set_ylabel("share of images")
    below.set_xlabel("confidence")
    below.set_xlim(0, 1)
    return figure
