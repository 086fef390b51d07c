"""Prepares ImageNet (ILSVRC 2012) for training from its two tar files.

    pip install 'lrnet-jax[prepare]'
    python -m experiments.prepare_imagenet --manual_dir=DIR --data_dir=DIR

`--manual_dir` holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, as image-net.org hands
them out. TensorFlow Datasets' own builder does the work, so the result is an ordinary
`imagenet2012` that any TFDS program reads. Only this command needs TensorFlow.

What the builder does not check is checked here. Before: both tars whole, every name as it should
be (the builder pairs validation labels with the sorted names, so one missing image would shift all
labels after it without a word), the number of images, the free disk space. After: the counts, and
the labels of a sample of images against their file names.
"""

import argparse
import importlib.util
import pathlib
import re
import shutil
import signal
import sys
import tarfile
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from lrnet_jax.data import imagenet, prepared, records

TRAIN_TAR = imagenet.TRAIN_TAR
VALIDATION_TAR = imagenet.VALIDATION_TAR
TRAIN_NAME = re.compile(r"(n\d{8})_\d+\.JPEG")
# The builder writes every image twice: sorted into temporary files, then into shards.
SPACE_FACTOR = 2.0
SAMPLE = 500  # images of each split whose labels are verified


class Counts(NamedTuple):
    """What the two tars hold."""

    synsets: int = 1000
    train: int = imagenet.IMAGENET_COUNTS["train"]
    validation: int = imagenet.IMAGENET_COUNTS["validation"]


class PreparationError(RuntimeError):
    """The tars, the disk or the result are not as they should be."""


def prepare(
    manual_dir: pathlib.Path,
    data_dir: pathlib.Path,
    file_format: str = "array_record",
    *,
    counts: Counts | None = None,
    num_shards: int | None = None,
) -> pathlib.Path:
    """Checks the tars, builds the data set, verifies it.

    Args:
      manual_dir: folder of the two tars.
      data_dir: the data set becomes data_dir/imagenet2012/<version>.
      file_format: "array_record" or "tfrecord".
      counts: for miniature tars in tests; None for the real numbers.
      num_shards: of each split; None leaves it to TFDS.

    Returns:
      The folder of the prepared data set. Where it is there already it is only verified.

    Raises:
      PreparationError: naming the file at fault and what to do.
    """
    counts = counts or Counts()
    if importlib.util.find_spec("tensorflow") is None:
        raise PreparationError(
            "preparing ImageNet needs TensorFlow; pip install 'lrnet-jax[prepare]'"
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder("imagenet2012", data_dir=data_dir)
    target = pathlib.Path(builder.data_dir)
    if target.exists():
        found = builder.info.file_format
        if found is None or found.value != file_format:
            raise PreparationError(
                f"{target} is there already, in {found and found.value} format, not {file_format}; "
                "training reads both, so keep it, or delete it first"
            )
    else:
        refuse_leftovers(target)
        check_tars(manual_dir, counts, builder.info.features["label"].names)
        check_space(manual_dir, data_dir)
        config = tfds.download.DownloadConfig(
            manual_dir=manual_dir, try_download_gcs=False, num_shards=num_shards
        )
        # The builder removes its unfinished folder when an exception passes through it.
        builder.download_and_prepare(download_config=config, file_format=file_format)
    verify(data_dir, counts, validation_labels(tfds))
    return target


def check_tars(manual_dir: pathlib.Path, counts: Counts, synsets: Collection[str]) -> None:
    """Walks the headers of both tars; every image must be there, under its own name.

    Args:
      manual_dir: folder of the two tars.
      counts: how many of each there must be.
      synsets: the classes that exist.

    Raises:
      PreparationError: naming the tar and its first faults.
    """
    for name in (TRAIN_TAR, VALIDATION_TAR):
        if not (manual_dir / name).is_file():
            raise PreparationError(
                f"{manual_dir / name} is missing; get it at https://image-net.org/download-images "
                f"(both {TRAIN_TAR} and {VALIDATION_TAR} are needed)"
            )
    _check_validation(manual_dir / VALIDATION_TAR, counts)
    _check_train(manual_dir / TRAIN_TAR, counts, synsets)


def _check_validation(path: pathlib.Path, counts: Counts) -> None:
    wanted = {f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, counts.validation + 1)}
    names = _members(path, path.open("rb"))
    if set(names) != wanted or len(names) != len(wanted):
        missing, strange = sorted(wanted - set(names)), sorted(set(names) - wanted)
        raise PreparationError(
            f"{path} holds {len(names)} files, not the {counts.validation} images "
            f"ILSVRC2012_val_00000001.JPEG and so on; missing {missing[:3]}, "
            f"unknown {strange[:3]}; download it again"
        )


def _check_train(path: pathlib.Path, counts: Counts, synsets: Collection[str]) -> None:
    images = 0
    found: set[str] = set()
    with path.open("rb") as file, _open_tar(path, file) as outer:
        inner_tars = _list(path, outer)
        for member in tqdm(inner_tars, desc="Checking", unit=" synsets", file=sys.stderr):
            synset = member.name.removesuffix(".tar")
            if synset not in synsets or synset in found:
                raise PreparationError(
                    f"{path} holds {member.name}, which is not one tar of a synset; "
                    "download it again"
                )
            found.add(synset)
            inside = f"{path}: {member.name}"
            names = _members(inside, outer.extractfile(member))
            for name in names:
                match = TRAIN_NAME.fullmatch(name)
                if match is None or match[1] != synset:
                    raise PreparationError(f"{inside} holds {name}, which does not belong there")
            if len(set(names)) != len(names):
                raise PreparationError(f"{inside} holds a file twice; download it again")
            images += len(names)
    if (len(found), images) != (counts.synsets, counts.train):
        raise PreparationError(
            f"{path} holds {images} images of {len(found)} synsets, it must hold {counts.train} "
            f"of {counts.synsets}; download it again"
        )


def _open_tar(path: pathlib.Path | str, file: Any) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except tarfile.TarError as error:
        raise PreparationError(f"{path} is not a tar file: {error}; download it again") from error


def _list(path: pathlib.Path | str, tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    try:
        members = tar.getmembers()
    except tarfile.TarError as error:
        raise PreparationError(f"{path} is cut short: {error}; download it again") from error
    for member in members:
        if not member.isfile() or not member.size:
            raise PreparationError(f"{path} holds {member.name}, which is empty or not a file")
    return members


def _members(path: pathlib.Path | str, file: Any) -> list[str]:
    with file, _open_tar(path, file) as tar:
        return [member.name for member in _list(path, tar)]


def check_space(manual_dir: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Raises PreparationError where the disk of `data_dir` is too full."""
    tars = sum((manual_dir / name).stat().st_size for name in (TRAIN_TAR, VALIDATION_TAR))
    data_dir.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(data_dir).free, int(tars * SPACE_FACTOR)
    if free < needed:
        raise PreparationError(
            f"{data_dir} has {free / 1e9:.0f} GB free, {needed / 1e9:.0f} GB are needed (half of "
            "it for a while only); free some or give another --data_dir"
        )


def refuse_leftovers(target: pathlib.Path) -> None:
    """Raises PreparationError where a killed run left its unfinished folder behind."""
    leftovers = sorted(target.parent.glob(f"incomplete.*_{target.name}"))
    if leftovers:
        raise PreparationError(
            f"{leftovers[0]} is the unfinished folder of a run that was killed, or of one still "
            "running; delete it if none is"
        )


def validation_labels(tfds: Any) -> list[str]:
    """Synsets of the validation images in the order of their names, from TFDS's own list."""
    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    return str(path.read_text()).split()


def verify(data_dir: pathlib.Path, counts: Counts, labels: list[str]) -> None:
    """Opens the result as training would; compares labels of a sample with the file names.

    Args:
      data_dir: as given to `prepare`.
      counts: what it must hold.
      labels: synsets of the validation images in the order of their names.

    Raises:
      PreparationError: a label is wrong.
      lrnet_jax.data.records.DamagedDatasetError: shards or counts are.
    """
    dataset = imagenet.open_prepared(
        "imagenet2012",
        data_dir=str(data_dir),
        num_workers=0,
        expected_counts={"train": counts.train, "validation": counts.validation},
    )
    class_names = dataset.class_names
    if class_names is None:
        raise PreparationError(f"{data_dir}/imagenet2012 has no class names; prepare it anew")
    random = np.random.default_rng(0)
    for split in (dataset.train, dataset.evaluation):
        count = len(split.records)
        for index in random.choice(count, min(SAMPLE, count), replace=False):
            example = split.example(int(index))
            if split is dataset.train:
                synset = example.file_name.partition("_")[0]
            else:
                number = int(example.file_name.removesuffix(".JPEG").rpartition("_")[2])
                synset = labels[number - 1]
            if class_names[example.label] != synset:
                raise PreparationError(
                    f"{split.describe(int(index), example.file_name)} has the label "
                    f"{class_names[example.label]}, it must be {synset}; delete "
                    f"{data_dir}/imagenet2012 and prepare it anew"
                )
            split.decode(int(index), example)


def end_orderly_on_sigterm() -> None:
    """Lets the builder remove its unfinished folder when a scheduler ends the job."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM, unfinished files removed"))


def main() -> None:
    """Runs `prepare` with the command line; what a user can mend ends it with one message."""
    parser = argparse.ArgumentParser(
        description="Prepares ImageNet (ILSVRC 2012) for training from its two tar files."
    )
    parser.add_argument(
        "--manual_dir",
        type=pathlib.Path,
        required=True,
        help=f"folder of {TRAIN_TAR} and {VALIDATION_TAR}",
    )
    parser.add_argument(
        "--data_dir",
        type=pathlib.Path,
        default=prepared.default_data_dir(),
        help="where the data set is written (default: %(default)s)",
    )
    parser.add_argument(
        "--file_format",
        choices=["array_record", "tfrecord"],
        default="array_record",
        help="of the files written (default: %(default)s)",
    )
    arguments = parser.parse_args()
    end_orderly_on_sigterm()
    try:
        target = prepare(
            arguments.manual_dir.expanduser(),
            arguments.data_dir.expanduser(),
            arguments.file_format,
        )
    except (PreparationError, records.DamagedDatasetError) as error:
        sys.exit(f"prepare_imagenet: {error}")
    print(f"ImageNet is ready: {target}")


if __name__ == "__main__":
    main()
