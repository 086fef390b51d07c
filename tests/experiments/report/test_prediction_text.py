"""Predictions as text."""

import csv
import json
import os
import pathlib

import numpy as np

from experiments.report import prediction_text
from experiments.run.predictions import Prediction
from lrnet_jax.classifier import Guess
from lrnet_jax.data import BadImageError

GUESSES = (Guess("cat, tabby", 0.91234, 2), Guess("dog", 0.04, 0))
GOOD = Prediction(pathlib.Path("a/cat.png"), np.zeros((2, 2, 3), np.uint8), GUESSES)
BAD = Prediction(pathlib.Path("b.png"), BadImageError("image b.png cannot be read"), ())


def test_a_table_is_aligned():
    header, line = prediction_text.table([GOOD.path, BAD.path], ["cat, tabby", "dog"])
    assert header == ""
    assert line(GOOD) == "a/cat.png   91.2 % cat, tabby    4.0 % dog"
    assert line(BAD) == ""


def test_csv_has_a_line_for_each_guess():
    header, lines = prediction_text.as_csv()
    rows = list(csv.DictReader([header, *lines(GOOD).splitlines()]))
    assert rows == [
        {"image": "a/cat.png", "rank": "1", "label": "2", "name": "cat, tabby",
         "probability": "0.912340"},
        {"image": "a/cat.png", "rank": "2", "label": "0", "name": "dog", "probability": "0.040000"},
    ]  # fmt: skip
    assert lines(BAD) == ""


def test_json_has_a_line_for_each_image():
    header, line = prediction_text.as_json()
    assert header == ""
    assert json.loads(line(GOOD)) == {
        "image": "a/cat.png",
        "guesses": [
            {"name": "cat, tabby", "probability": 0.91234, "label": 2},
            {"name": "dog", "probability": 0.04, "label": 0},
        ],
    }
    assert json.loads(line(BAD)) == {"image": "b.png", "error": "image b.png cannot be read"}


def test_names_that_are_no_text_can_be_printed():
    path = pathlib.Path(os.fsdecode(b"caf\xe9.png"))
    assert prediction_text.printable(path) == "caf\N{REPLACEMENT CHARACTER}.png"
