"""ImageNet's validation images as their tar unpacks: files in one folder, labelled by a list.

The list is that of TFDS: the synset of each image in the order of the numbers in the names.
"""

import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from lrnet_jax.data import listing
from lrnet_jax.data.class_folders import Listed, some
from lrnet_jax.data.records import DamagedDatasetError

NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def validation_synsets() -> list[str]:
    """Synsets of the validation images in the order of their numbers."""
    import tensorflow_datasets as tfds

    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    return str(path.read_text()).split()


def list_validation(folder: pathlib.Path, classes: Sequence[str]) -> Listed | None:
    """Lists such a folder.

    Args:
      folder: it may hold anything else too.
      classes: the synsets in the order of the labels.

    Returns:
      None if it holds class folders, or no such image.

    Raises:
      DamagedDatasetError: an image has a number beyond the list, or a class that is not given.
    """
    if listing.class_folders(folder):
        return None
    names = sorted(path.name for path in folder.iterdir() if NAME.fullmatch(path.name))
    if not names:
        return None
    synsets, labels = validation_synsets(), {name: label for label, name in enumerate(classes)}
    numbers = np.array([int(name[-13:-5]) for name in names]) - 1
    beyond = [name for name, i in zip(names, numbers, strict=True) if not 0 <= i < len(synsets)]
    if beyond:
        raise DamagedDatasetError(f"{folder}: ImageNet has no image of the name {some(beyond)}")
    unknown = sorted({synsets[i] for i in numbers} - set(labels))
    if unknown:
        raise DamagedDatasetError(
            f"{folder} has images of classes that training has not: {some(unknown)}"
        )
    found = np.array([labels[synsets[i]] for i in numbers], np.int32)
    return Listed(folder, tuple(classes), [os.fsencode(name) for name in names], found)
