"""Reassessed labels (ReaL) of ImageNet's validation images: each image may have several, or none.

Source: Beyer et al., "Are we done with ImageNet?", arXiv 2006.07159. Their file real.json is a list
with a list of labels for each of the 50,000 images, in the order of the files' names.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.config import ConfigError
from experiments.run.evaluated import Checkpoint

FILE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG$")


class RealScore(NamedTuple):
    """The score on reassessed labels.

    Attributes:
      real_top1: percent of the images whose prediction is one of their labels.
      real_count: number of images that have labels.
    """

    real_top1: float
    real_count: int


def read_labels(path: pathlib.Path) -> list[list[int]]:
    """Reads real.json.

    Raises:
      ConfigError: it cannot be read, or is something else.
    """
    try:
        labels = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--real_labels={path} cannot be read: {error}") from error
    if not isinstance(labels, list) or not all(
        isinstance(some, list) and all(isinstance(label, int) for label in some) for some in labels
    ):
        raise ConfigError(
            f"--real_labels={path} must be a list with a list of labels for each image, as "
            "real.json of ReaL is"
        )
    return labels


def image_numbers(checkpoint: Checkpoint, count: int) -> list[int]:
    """The number of each evaluation image in the order of the names of ImageNet's files, from 0.

    Args:
      checkpoint: to evaluate.
      count: number of images whose labels are at hand.

    Raises:
      ConfigError: an image has another name, or its labels are not at hand.
    """
    split = getattr(checkpoint.dataset, "evaluation", None)
    numbers = []
    for index in range(checkpoint.dataset.num_eval):
        name = "" if split is None else split.example(index).file_name
        found = FILE_NAME.search(name)
        if found is None:
            raise ConfigError(
                f"--real_labels is for ImageNet's validation images, ILSVRC2012_val_00000001.JPEG "
                f"and so on; got {name or 'images without files'}"
            )
        number = int(found[1])
        if number > count:
            raise ConfigError(
                f"--real_labels has labels of {count} images, and number {number} is evaluated; "
                "give real.json of all of them"
            )
        numbers.append(number - 1)
    return numbers


def score(
    labels: Sequence[Sequence[int]], numbers: Sequence[int], predicted: np.ndarray
) -> RealScore:
    """Scores predictions. Images without a label do not count.

    Args:
      labels: of `read_labels`.
      numbers: of `image_numbers`.
      predicted: (n,) classes of the network.

    Raises:
      ConfigError: none of the images has a label.
    """
    hits = [
        int(guess) in labels[number]
        for number, guess in zip(numbers, predicted, strict=True)
        if labels[number]
    ]
    if not hits:
        raise ConfigError("--real_labels has no labels of the evaluated images")
    return RealScore(100 * sum(hits) / len(hits), len(hits))
