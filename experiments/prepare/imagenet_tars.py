"""Checks the two tar files of ImageNet before anything is built from them."""

import pathlib
import re
import sys
import tarfile
from collections.abc import Collection
from typing import IO, NamedTuple

from tqdm import tqdm

from experiments.config import ConfigError
from lrnet_jax.data import imagenet

TRAIN_TAR = imagenet.TRAIN_TAR
VALIDATION_TAR = imagenet.VALIDATION_TAR
_TRAIN_NAME = re.compile(r"(n\d{8})_\d+\.JPEG")


class Counts(NamedTuple):
    """What the two tars must hold.

    Attributes:
      synsets: number of classes.
      train: number of training images.
      validation: number of validation images.
    """

    synsets: int = 1000
    train: int = imagenet.IMAGENET_COUNTS["train"]
    validation: int = imagenet.IMAGENET_COUNTS["validation"]


def check_tars(manual_dir: pathlib.Path, counts: Counts, synsets: Collection[str]) -> None:
    """Reads the headers of both tars; every image must be there under its own name.

    Args:
      manual_dir: folder of the two tars.
      counts: what they must hold.
      synsets: the classes that exist.

    Raises:
      ConfigError: a tar is missing or damaged; the message names the first faults.
    """
    for name in (TRAIN_TAR, VALIDATION_TAR):
        if not (manual_dir / name).is_file():
            raise ConfigError(
                f"{manual_dir / name} is missing; get it at https://image-net.org/download-images "
                f"(both {TRAIN_TAR} and {VALIDATION_TAR} are needed)"
            )
    _check_validation(manual_dir / VALIDATION_TAR, counts)
    _check_train(manual_dir / TRAIN_TAR, counts, synsets)


def _check_validation(path: pathlib.Path, counts: Counts) -> None:
    wanted = {f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, counts.validation + 1)}
    names = _member_names(path, path.open("rb"))
    if set(names) != wanted or len(names) != len(wanted):
        missing, unknown = sorted(wanted - set(names)), sorted(set(names) - wanted)
        raise ConfigError(
            f"{path} holds {len(names)} files, not the {counts.validation} images "
            f"ILSVRC2012_val_00000001.JPEG and so on; missing {missing[:3]}, "
            f"unknown {unknown[:3]}; download it again"
        )


def _check_train(path: pathlib.Path, counts: Counts, synsets: Collection[str]) -> None:
    images = 0
    found: set[str] = set()
    with path.open("rb") as file, _open_tar(path, file) as outer:
        inner_tars = _members(path, outer)
        for member in tqdm(inner_tars, desc="Checking", unit=" synsets", file=sys.stderr):
            synset = member.name.removesuffix(".tar")
            if synset not in synsets or synset in found:
                raise ConfigError(
                    f"{path} holds {member.name}, which is not one tar of a synset; "
                    "download it again"
                )
            found.add(synset)
            inner = outer.extractfile(member)
            assert inner is not None  # the member is a file
            images += _count_images(f"{path}: {member.name}", inner, synset)
    if (len(found), images) != (counts.synsets, counts.train):
        raise ConfigError(
            f"{path} holds {images} images of {len(found)} synsets, it must hold {counts.train} "
            f"of {counts.synsets}; download it again"
        )


def _count_images(path: str, file: IO[bytes], synset: str) -> int:
    """The number of images in the tar of a synset, each under a name of that synset."""
    names = _member_names(path, file)
    for name in names:
        match = _TRAIN_NAME.fullmatch(name)
        if match is None or match[1] != synset:
            raise ConfigError(f"{path} holds {name}, which does not belong there")
    if len(set(names)) != len(names):
        raise ConfigError(f"{path} holds a file twice; download it again")
    return len(names)


def _member_names(path: pathlib.Path | str, file: IO[bytes]) -> list[str]:
    with file, _open_tar(path, file) as tar:
        return [member.name for member in _members(path, tar)]


def _open_tar(path: pathlib.Path | str, file: IO[bytes]) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except tarfile.TarError as error:
        raise ConfigError(f"{path} is not a tar file: {error}; download it again") from error


def _members(path: pathlib.Path | str, tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    try:
        members = tar.getmembers()
    except tarfile.TarError as error:
        raise ConfigError(f"{path} is cut short: {error}; download it again") from error
    for member in members:
        if not member.isfile() or not member.size:
            raise ConfigError(f"{path} holds {member.name}, which is empty or not a file")
    return members
