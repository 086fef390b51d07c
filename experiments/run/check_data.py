"""Whether a configuration, a checkpoint and a data set fit together."""

import sys
from typing import Any

from experiments.config import Config, ConfigError
from lrnet_jax.data.dataset import Dataset
from lrnet_jax.plan import feature_info
from lrnet_jax.training import processes

USUAL_MAP = 7  # height and width of the last map of every network of the zoo, at its usual size
SMALL = 64  # pixels; images of this size are never too large for a network


def check_data(config: Config, dataset: Dataset) -> None:
    """Refuses images that cannot be trained on, and warns if their size is unusual.

    Raises:
      ConfigError: there are too few images or classes, or they are not those of process 0.
    """
    batch, images = config.train.batch_size, dataset.num_train
    if batch > images:
        raise ConfigError(
            f"train.batch_size {batch} is larger than the data set, which has {images} training "
            f"images; use at most --config.train.batch_size={images}"
        )
    if dataset.num_classes < 2:
        raise ConfigError(
            f"{dataset.name} has one class only, and a network learns to tell classes apart; "
            "choose another label with --config.data.label_key"
        )
    own = describe_images(dataset)
    if processes.broadcast(own) != own:
        raise ConfigError(
            f"this process sees other images than process 0: {own['num_train']} + "
            f"{own['num_eval']}; give all of them the same data_dir, and wait until its files are "
            "on every node"
        )
    unusual = unusual_size(config, dataset.image_size)
    if unusual and processes.is_first():
        print(f"warning: {unusual}", file=sys.stderr, flush=True)


def unusual_size(config: Config, image_size: int) -> str | None:
    """What is wrong with images of this size for the network, in one line; None if nothing is."""
    stride = feature_info(config.variant)[-1].stride
    usual, side = USUAL_MAP * stride, -(-image_size // stride)
    if image_size > max(2 * usual, SMALL):
        times = (image_size / usual) ** 2
        return (
            f"images of {image_size} x {image_size} are large for {config.network}: its last map "
            f"is {side} x {side}, and a step takes about {times:.0f} times as long as at {usual}; "
            f"use --config.data.image_size={usual}, or a network for large images such as "
            "--config.network=lrnet26"
        )
    if 3 * image_size < usual:
        return (
            f"images of {image_size} x {image_size} are small for {config.network}: its last map "
            f"is {side} x {side}; use --config.data.image_size={usual}, or a network for small "
            "images such as --config.network=lrnet_small"
        )
    return None


def describe_images(dataset: Dataset) -> dict[str, Any]:
    """What the metadata of a checkpoint say about the images of its run."""
    return {
        "digest": dataset.digest,
        "num_train": dataset.num_train,
        "num_eval": dataset.num_eval,
    }


def check_same_images(metadata: dict[str, Any], dataset: Dataset) -> None:
    """Refuses to resume with other images: the order of all of them would be another.

    Args:
      metadata: of the checkpoint to resume from.
      dataset: the images that are there now.

    Raises:
      ConfigError: images were added, removed or renamed since.
    """
    before, now = metadata.get("images"), describe_images(dataset)
    if before is not None and before != now:
        raise ConfigError(
            f"the images have changed since step {metadata['step']}, from {before['num_train']} + "
            f"{before['num_eval']} to {now['num_train']} + {now['num_eval']} or other names; bring "
            "back the old ones, or give another --workdir"
        )
