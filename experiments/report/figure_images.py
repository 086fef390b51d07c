"""The images that figure 5 is drawn on."""

import numpy as np

from experiments.config import Config
from experiments.run.inputs import open_data
from lrnet_jax.data.dataset import Batch

_POOL = 256  # evaluation images to choose from


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
