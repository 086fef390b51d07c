"""A checkpoint that is evaluated, and the images that it is evaluated on."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

import lrnet_jax
from experiments import config as configs
from experiments.config import Config, ConfigError, Data
from experiments.run.class_map import map_classes, select
from experiments.run.inputs import open_data
from experiments.run.overrides import override_all
from lrnet_jax.data.augment import normalize
from lrnet_jax.data.dataset import Dataset
from lrnet_jax.functional import Functional, Variables, split
from lrnet_jax.preprocessing import Preprocessing, class_names
from lrnet_jax.training.devices import replicate


class Checkpoint(NamedTuple):
    """A checkpoint that can be evaluated.

    Attributes:
      step: its training step.
      config: of its run, with the data that it is evaluated on.
      functional: its network, which answers with the classes of the data set.
      variables: params and batch_stats, on all devices.
      normalize: images uint8 -> normalised as in its training.
      dataset: the images.
      classes: names of the data set's classes, or None.
      notes: sentences about what differs from the training's images.
      batch_size: images per step over all devices.
    """

    step: int
    config: Config
    functional: Functional
    variables: Variables
    normalize: Callable[[jax.Array], jax.Array]
    dataset: Dataset
    classes: tuple[str, ...] | None
    notes: tuple[str, ...]
    batch_size: int


def open_checkpoint(
    path: str,
    *,
    data_dir: str | None = None,
    batch_size: int | None = None,
    ema: bool | None = None,
    changes: Sequence[tuple[str, str]] = (),
) -> Checkpoint:
    """Loads a checkpoint and opens its data set, or another one.

    Args:
      path: a workdir, a step directory or an export.
      data_dir: folder of the prepared data sets; the run's by default.
      batch_size: images per step over all devices; the run's by default.
      ema: which weights, see `lrnet_jax.load_checkpoint`.
      changes: fields of the section `data` as typed, such as ("data.name", "folder").

    Raises:
      CheckpointError: it cannot be read.
      ConfigError: its configuration cannot be evaluated here, or the network lacks classes of the
        data set.
      MissingDatasetError: the data set is not on this machine.
    """
    model, metadata = lrnet_jax.load_checkpoint(path, ema=ema)
    for message in metadata["damaged"]:
        print(f"{message}; step {metadata['step']} is evaluated", file=sys.stderr)
    preprocessing = Preprocessing.from_metadata(metadata)
    config = change_data(configs.from_dict(metadata["config"]), changes, preprocessing.image_size)
    batch_size = batch_size or config.train.eval_batch_size
    if batch_size % jax.device_count():
        raise ConfigError(
            f"--batch_size={batch_size} is not divisible by {jax.device_count()} devices"
        )
    dataset = open_data(config, data_dir)
    classes = map_classes(
        dataset.class_names, dataset.num_classes, class_names(metadata), model.num_classes
    )
    functional, *variables = split(model)
    names = dataset.class_names or class_names(metadata)
    return Checkpoint(
        step=metadata["step"],
        config=config,
        functional=select(functional, classes),
        variables=replicate(tuple(variables)),
        normalize=functools.partial(
            normalize, mean=preprocessing.mean, std=preprocessing.std, dtype=config.model.dtype
        ),
        dataset=dataset,
        classes=names,
        notes=(*([classes.note] if classes.note else []), *_differing(preprocessing, dataset)),
        batch_size=batch_size,
    )


def change_data(config: Config, changes: Sequence[tuple[str, str]], image_size: int) -> Config:
    """The configuration with another data set, or another part of it.

    With another name nothing else of the training's data counts, and the images have the size of
    the training's. A prepared set then needs no split for training.

    Args:
      config: of the run.
      changes: fields of the section `data` as typed.
      image_size: of the training, in pixels.

    Raises:
      ConfigError: a field is of another section, there is no such field, or a value is bad.
    """
    for name, _ in changes:
        if not name.startswith("data."):
            raise ConfigError(
                f"--config.{name}: an evaluation can change the data only, such as "
                "--config.data.eval_split=test"
            )
    given = dict(changes)
    if given.get("data.name", config.data.name) != config.data.name:
        fresh = Data(name=given["data.name"], image_size=image_size, workers=config.data.workers)
        config = dataclasses.replace(config, data=fresh)
        split = given.get("data.eval_split")
        if split and given["data.name"] != "folder":  # whose classes are those of its training
            changes = [("data.train_split", split), *changes]
    return override_all(config, changes)


def _differing(preprocessing: Preprocessing, dataset: Any) -> list[str]:
    """What is done to the images that was not done in training."""
    used = (dataset.image_size, dataset.resize)
    trained = (preprocessing.image_size, preprocessing.resize)
    if used == trained:
        return []
    described = [f"{side} x {side} out of {resize}" for side, resize in (used, trained)]
    return [f"images are {described[0]}, those of the training were {described[1]}"]
