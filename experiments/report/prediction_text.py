"""Predictions as text: lines for people, CSV, JSON."""

import csv
import io
import json
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from experiments.report.page import percent
from experiments.run.predictions import Prediction

WIDEST = 24  # column of class names in a table, in characters
Format = Callable[[Prediction], str]  # without the line break at the end, "" for nothing


def table(files: Sequence[pathlib.Path], classes: Sequence[str]) -> tuple[str, Format]:
    """A line for each image, its classes from the most probable on. No header is needed."""
    width = max(len(printable(path)) for path in files)
    name_width = min(WIDEST, max((len(name) for name in classes), default=0))

    def line(prediction: Prediction) -> str:
        guesses = "".join(
            f"  {percent(guess.probability):>7s} {guess.name:{name_width}s}"
            for guess in prediction.guesses
        )
        return f"{printable(prediction.path):{width}s}{guesses}".rstrip() if guesses else ""

    return "", line


def as_csv() -> tuple[str, Format]:
    """A line for each image and class: header and format. Files that cannot be read have none."""

    def lines(prediction: Prediction) -> str:
        return _csv(
            [printable(prediction.path), rank, guess.label, guess.name, f"{guess.probability:.6f}"]
            for rank, guess in enumerate(prediction.guesses, start=1)
        )

    return _csv([["image", "rank", "label", "name", "probability"]]), lines


def as_json() -> tuple[str, Format]:
    """An object for each image, one a line. A file that cannot be read has an "error"."""

    def line(prediction: Prediction) -> str:
        record: dict[str, object] = {"image": printable(prediction.path)}
        if isinstance(prediction.pixels, np.ndarray):
            record["guesses"] = [guess._asdict() for guess in prediction.guesses]
        else:
            record["error"] = str(prediction.pixels)
        return json.dumps(record, ensure_ascii=False)

    return "", line


def printable(path: pathlib.Path) -> str:
    """A path as text; bytes that are no UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def _csv(rows: object) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)  # type: ignore[arg-type]
    return text.getvalue().removesuffix("\n")
