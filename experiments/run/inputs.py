"""From a configuration to images on the device: the same for training and evaluation."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from experiments.config import Config, ConfigError
from lrnet_jax.data import augment as augmentation
from lrnet_jax.data import open_dataset
from lrnet_jax.data.dataset import Batch, Dataset
from lrnet_jax.data.mixing import Mixed, mix
from lrnet_jax.data.rand_augment import rand_augment
from lrnet_jax.data.random_erasing import erase
from lrnet_jax.functional import Functional, Variables
from lrnet_jax.training.attack import Budget, attack_network
from lrnet_jax.training.devices import DeviceBatch
from lrnet_jax.training.drop_path import draw_branch_scales


def open_data(config: Config, data_dir: str | None = None) -> Dataset:
    """Opens the configured data set.

    Args:
      config: the configuration of the run.
      data_dir: folder of the prepared data sets on this machine; None for the configured one.

    Raises:
      ConfigError: no such data set, or it cannot be opened as configured.
      MissingDatasetError: it is not on this machine; the message explains how to get it.
      DamagedDatasetError: its files are not what they should be.
    """
    try:
        return open_dataset(
            config.data.name,
            data_dir=data_dir or config.data.data_dir,
            image_size=config.data.image_size,
            num_workers=config.data.workers,
            tolerate_bad_images=config.data.tolerate_bad_images,
            holdout=config.data.holdout,
            train_split=config.data.train_split,
            eval_split=config.data.eval_split,
            image_key=config.data.image_key,
            label_key=config.data.label_key,
        )
    except ValueError as error:
        raise ConfigError(f"config.data: {error}") from error


def make_normalize(config: Config, dataset: Dataset) -> Callable[[jax.Array], jax.Array]:
    """Images uint8 -> normalised, in the dtype of the network's activations."""
    return functools.partial(
        augmentation.normalize, mean=dataset.mean, std=dataset.std, dtype=config.model.dtype
    )


def make_augment(
    config: Config, dataset: Dataset, normalize: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Images uint8, positions in the global batch, key -> augmented and normalised images.

    Images that will be attacked stay uint8, because `make_attack` normalises them.
    """
    finish = (lambda images: images) if config.attack.steps else normalize
    data = config.data

    def prepare(images: jax.Array, index: jax.Array, key: jax.Array) -> jax.Array:
        images = augmentation.augment(images, index, key, flip=data.flip, shift=data.shift)
        images = rand_augment(
            images, index, key, operations=data.randaugment, magnitude=data.randaugment_magnitude
        )
        images = erase(images, index, key, probability=data.random_erasing, fill=dataset.mean)
        return finish(images)

    return prepare


def make_mix(
    config: Config,
) -> Callable[[jax.Array, jax.Array, jax.Array], Mixed] | None:
    """Normalised images, positions in the global batch, key -> mixed images; None for no mixing."""
    if not config.data.mixes:
        return None
    return functools.partial(
        mix, mixup_alpha=config.data.mixup_alpha, cutmix_alpha=config.data.cutmix_alpha
    )


def make_drop_path(config: Config) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """Positions in the global batch, key -> factors of the branches; None for no drop path."""
    rate = config.train.drop_path
    if not rate:
        return None
    return functools.partial(draw_branch_scales, rate=rate, blocks=sum(config.model.depths))


def make_attack(
    config: Config, normalize: Callable[[jax.Array], jax.Array], functional: Functional
) -> Callable[[Variables, DeviceBatch, jax.Array], jax.Array] | None:
    """Variables, batch of uint8 images, key -> attacked, normalised images.

    None for regular training.
    """
    settings = config.attack
    if not settings.steps:
        return None
    attack = attack_network(
        functional, normalize, targeted=settings.targeted, random_start=settings.random_start
    )
    budget = Budget(settings.epsilon, settings.step_size, settings.steps)

    def craft(variables: Variables, batch: DeviceBatch, key: jax.Array) -> jax.Array:
        images = attack(variables, batch, key, budget)
        if settings.mixed:
            is_attacked = batch["index"] % 2 == 0
            images = jnp.where(is_attacked[:, None, None, None], images, batch["image"])
        return normalize(images)

    return craft


def eval_batches(dataset: Dataset, batch_size: int, *, with_index: bool = False) -> Iterator[Batch]:
    """The share of this process of the evaluation split, as the evaluation step takes it.

    Args:
      dataset: the data set.
      batch_size: images per step over all processes, less where the split has less.
      with_index: also each image's place in the split, which an attack needs.
    """
    names = ("image", "label", "mask", *(("index",) if with_index else ()))
    # A batch that is larger than the split would be padding for the most part.
    devices = jax.device_count()
    batch_size = min(batch_size, -(-dataset.num_eval // devices) * devices)
    for batch in dataset.eval_batches(
        batch_size, process_index=jax.process_index(), process_count=jax.process_count()
    ):
        yield {name: batch[name] for name in names}
