"""Predictions for files, in their order, batch by batch."""

import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from experiments.run.image_files import ReadImage, read_ahead
from lrnet_jax.classifier import Guess, Predictor, softmax
from lrnet_jax.data import BadImageError


class Prediction(NamedTuple):
    """What a network says of an image file.

    Attributes:
      path: of the file.
      pixels: (S, S, 3) uint8, what the network saw; or why the file cannot be read.
      guesses: the most probable classes first; none for a file that cannot be read.
    """

    path: pathlib.Path
    pixels: np.ndarray | BadImageError
    guesses: tuple[Guess, ...]


def predict_files(
    predictor: Predictor, files: Iterable[pathlib.Path], *, top: int, batch_size: int
) -> Iterator[Prediction]:
    """Predicts every file. Those that cannot be read come without guesses, in their place."""
    images = read_ahead(files, predictor.preprocessing)
    while batch := list(itertools.islice(images, batch_size)):
        yield from _predict(predictor, batch, top)


def _predict(predictor: Predictor, batch: list[ReadImage], top: int) -> Iterator[Prediction]:
    good = [image.pixels for image in batch if isinstance(image.pixels, np.ndarray)]
    rows = iter(softmax(predictor.logits(np.stack(good))) if good else ())
    for path, pixels in batch:
        guesses = (
            tuple(predictor.guesses(next(rows), top)) if isinstance(pixels, np.ndarray) else ()
        )
        yield Prediction(path, pixels, guesses)
