"""The images that figure 5 is drawn on."""

import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.config import Config, ConfigError
from experiments.run.inputs import open_data
from lrnet_jax.data.dataset import Batch
from lrnet_jax.data.decode import central_crop, decode

_POOL = 256  # evaluation images to choose from


def read_files(names: Sequence[str], size: int) -> np.ndarray:
    """Central crops of image files, (N, size, size, 3) uint8.

    Raises:
      ConfigError: a file cannot be read.
    """
    images = []
    for name in names:
        try:
            image = decode(pathlib.Path(name).read_bytes())
        except OSError as error:
            raise ConfigError(f"--images: {name} cannot be read: {error}") from error
        images.append(central_crop(image, size))
    return np.stack(images)


def evaluation_images(config: Config, count: int, data_dir: str | None) -> np.ndarray:
    """Images of the evaluation split, (count, H, W, 3) uint8.

    Args:
      config: the configuration of the run.
      count: number of images.
      data_dir: folder of the prepared data sets; None for that of the run.
    """
    batch = next(iter(open_data(config, data_dir).eval_batches(_POOL)))
    return choose_of_many_classes(batch, count)


def choose_of_many_classes(batch: Batch, count: int) -> np.ndarray:
    """The first images of a batch, of classes as different as it has."""
    images, labels = batch["image"][batch["mask"]], batch["label"][batch["mask"]]
    # Each image's number within its class: 0 for the first image of each class.
    number = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    return images[np.argsort(number, kind="stable")[:count]]
