"""Builds ImageNet from its two tar files with TFDS, and verifies the result."""

import importlib.util
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.config import ConfigError
from experiments.prepare.imagenet_tars import TRAIN_TAR, VALIDATION_TAR, Counts, check_tars
from experiments.run import pasteable
from lrnet_jax.data import imagenet
from lrnet_jax.data.examples import Examples
from lrnet_jax.data.flat_imagenet import validation_synsets

FORMATS = ("array_record", "tfrecord")
# The builder writes every image twice: sorted into temporary files, then into shards.
_SPACE_FACTOR = 2.0
_SAMPLE = 500  # images of each split whose labels are verified


def prepare(
    manual_dir: pathlib.Path,
    data_dir: pathlib.Path,
    file_format: str = "array_record",
    *,
    counts: Counts | None = None,
    num_shards: int | None = None,
) -> pathlib.Path:
    """Checks the tars, builds the data set and verifies it.

    Args:
      manual_dir: folder of the two tars.
      data_dir: the data set becomes data_dir/imagenet2012/<version>.
      file_format: one of `FORMATS`.
      counts: of miniature tars in tests; None for the real numbers.
      num_shards: of each split; None leaves it to TFDS.

    Returns:
      The folder of the prepared data set. If it exists already, it is only verified.

    Raises:
      ConfigError: TensorFlow, a tar or disk space is missing, or the result is wrong; the message
        names the file at fault and what to do.
      DamagedDatasetError: shards are damaged, or the number of images is wrong.
    """
    counts = counts or Counts()
    if importlib.util.find_spec("tensorflow") is None:
        raise ConfigError(f"preparing ImageNet needs TensorFlow; {pasteable.install('prepare')}")
    import tensorflow_datasets as tfds

    builder = tfds.builder("imagenet2012", data_dir=data_dir)
    target = pathlib.Path(builder.data_dir)
    if target.exists():
        _check_format(target, builder.info.file_format, file_format)
    else:
        refuse_leftovers(target)
        check_tars(manual_dir, counts, builder.info.features["label"].names)
        check_space(manual_dir, data_dir)
        config = tfds.download.DownloadConfig(
            manual_dir=manual_dir, try_download_gcs=False, num_shards=num_shards
        )
        # The builder removes its unfinished folder when an exception passes through it.
        builder.download_and_prepare(download_config=config, file_format=file_format)
    verify(data_dir, counts, validation_synsets())
    return target


def _check_format(target: pathlib.Path, found: Any, wanted: str) -> None:
    if found is None or found.value != wanted:
        raise ConfigError(
            f"{target} is there already, in {found and found.value} format, not {wanted}; "
            "training reads both, so keep it, or delete it first"
        )


def check_space(manual_dir: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Checks that the disk of `data_dir` has room for the data set.

    Raises:
      ConfigError: it is too full.
    """
    tars = sum((manual_dir / name).stat().st_size for name in (TRAIN_TAR, VALIDATION_TAR))
    data_dir.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(data_dir).free, int(tars * _SPACE_FACTOR)
    if free < needed:
        raise ConfigError(
            f"{data_dir} has {free / 1e9:.0f} GB free, {needed / 1e9:.0f} GB are needed (half of "
            "it only during the build); free some or give another --data_dir"
        )


def refuse_leftovers(target: pathlib.Path) -> None:
    """Checks that no killed run has left its unfinished folder behind.

    Raises:
      ConfigError: there is such a folder.
    """
    leftovers = sorted(target.parent.glob(f"incomplete.*_{target.name}"))
    if leftovers:
        raise ConfigError(
            f"{leftovers[0]} is the unfinished folder of a run that was killed, or of one that is "
            "still running; delete it if none is"
        )


def verify(data_dir: pathlib.Path, counts: Counts, labels: Sequence[str]) -> None:
    """Opens the result as training does, and compares the labels of a sample with the file names.

    Args:
      data_dir: as given to `prepare`.
      counts: what the data set must hold.
      labels: synsets of the validation images in the order of their names.

    Raises:
      ConfigError: a label is wrong.
      DamagedDatasetError: shards are damaged, or the number of images is wrong.
    """
    dataset = imagenet.open_prepared(
        "imagenet2012",
        data_dir=str(data_dir),
        num_workers=0,
        expected_counts={"train": counts.train, "validation": counts.validation},
    )
    class_names = dataset.class_names
    if class_names is None:
        raise ConfigError(f"{data_dir}/imagenet2012 has no class names; prepare it again")
    random = np.random.default_rng(0)
    for split in (dataset.train, dataset.evaluation):
        count = len(split)
        for index in random.choice(count, min(_SAMPLE, count), replace=False):
            wrong = _wrong_label(split, int(index), class_names, labels)
            if wrong is not None:
                raise ConfigError(f"{wrong}; delete {data_dir}/imagenet2012 and prepare it again")


def _wrong_label(
    split: Examples, index: int, class_names: Sequence[str], labels: Sequence[str]
) -> str | None:
    """Why the label of an image is wrong, else None; also decodes the image."""
    example = split.example(index)
    if split.name == "train":
        synset = example.file_name.partition("_")[0]
    else:
        number = int(example.file_name.removesuffix(".JPEG").rpartition("_")[2])
        synset = labels[number - 1]
    if class_names[example.label] != synset:
        return (
            f"{split.describe(index, example.file_name)} has the label "
            f"{class_names[example.label]}, it must be {synset}"
        )
    split.decode(index, example)
    return None
