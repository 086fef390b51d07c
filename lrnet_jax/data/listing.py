"""Lists the images of class folders: 1.28 million files in seconds, so no index is kept.

A listing cannot be stale this way. Names that begin with a dot are left out, as are files whose
names are no images' (`SUFFIXES`). Images may be in folders below the class's, and symbolic links
are followed.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import logging
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lrnet_jax.data.records import DamagedDatasetError

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
THREADS = 16  # listing waits on the disk or the network
PROGRESS_SECONDS = 2.0
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Paths:
    """Many paths in two arrays, which are sent to other processes at once.

    Attributes:
      text: (bytes,) uint8, the paths one after the other.
      ends: (n,) int64, where each ends.
    """

    text: np.ndarray
    ends: np.ndarray

    @classmethod
    def pack(cls, paths: Sequence[bytes]) -> "Paths":
        """Packs paths, encoded as by `os.fsencode`."""
        text = np.frombuffer(b"".join(paths), np.uint8)
        return cls(text, np.cumsum([len(path) for path in paths], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[start : self.ends[index]].tobytes())


class ClassFolder(NamedTuple):
    """What a class folder holds.

    Attributes:
      images: their paths within the class folder, encoded, with "/".
      others: files that are no images by their names.
    """

    images: list[bytes]
    others: list[str]


def class_folders(folder: pathlib.Path) -> list[str]:
    """Names of the folders in a folder, sorted by code points as torchvision sorts them."""
    with _explained(folder), os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def stray_images(folder: pathlib.Path) -> list[str]:
    """Names of images that lie beside the class folders, and belong to no class."""
    with _explained(folder), os.scandir(folder) as entries:
        return sorted(e.name for e in entries if _is_image(e.name) and not e.is_dir())


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name[name.rfind(".") :].lower() in SUFFIXES


def list_images(folder: pathlib.Path, classes: Sequence[str]) -> list[ClassFolder]:
    """Lists the folder of each class, in threads, with a message every other second.

    Args:
      folder: the folder of the class folders.
      classes: names of class folders.

    Raises:
      DamagedDatasetError: a folder cannot be listed, or holds itself by a symbolic link.
    """
    found: list[ClassFolder] = []
    images, told = 0, time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for listed in pool.map(_list_class, [folder / name for name in classes]):
            found.append(listed)
            images += len(listed.images)
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                logger.info(
                    "listing %s: %d images in %d of %d classes",
                    folder, images, len(found), len(classes),
                )  # fmt: skip
    return found


def _list_class(folder: pathlib.Path) -> ClassFolder:
    listed = ClassFolder([], [])
    _walk(os.fspath(folder), "", (os.path.realpath(folder),), listed)
    return listed


def _walk(folder: str, within: str, links: tuple[str, ...], listed: ClassFolder) -> None:
    """Adds the images below a folder.

    Args:
      folder: its path.
      within: its path within the class folder, with "/" at the end.
      links: the real paths of the class folder and of the links that led here.
      listed: grows.
    """
    below = []
    with _explained(folder), os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_dir():
                below.append((name, entry.path, entry.is_symlink()))
            elif _is_image(name):
                listed.images.append(os.fsencode(within + name))
            else:
                listed.others.append(within + name)
    for name, path, is_link in sorted(below):
        inner = links
        if is_link:
            target = os.path.realpath(path)
            if any(link == target or link.startswith(target + os.sep) for link in links):
                raise DamagedDatasetError(
                    f"{path} is a symbolic link to {target}, which holds it; remove the link"
                )
            inner = (*links, target)
        _walk(path, f"{within}{name}/", inner, listed)


@contextlib.contextmanager
def _explained(folder: str | pathlib.Path) -> Iterator[None]:
    """Turns an OSError of listing a folder into an error that names it."""
    try:
        yield
    except OSError as error:
        raise DamagedDatasetError(f"{folder} cannot be listed: {error.strerror}") from error


def shuffled(paths: Sequence[bytes], salt: str) -> np.ndarray:
    """The order in which TFDS would write files with these names, (n,) int64.

    TFDS sorts by the MD5 of the split's name and the example's key, which is the file's name in
    ImageNet and most others. Images of the same name are in the order of their paths.

    Args:
      paths: sorted, encoded.
      salt: the name of the split in TFDS.
    """
    start = hashlib.md5(os.fsencode(salt), usedforsecurity=False)

    def digests() -> Iterator[bytes]:
        for path in paths:
            digest = start.copy()
            digest.update(path[path.rfind(b"/") + 1 :])
            yield digest.digest()

    words = np.frombuffer(b"".join(digests()), ">u8").reshape(-1, 2).astype(np.uint64)
    return np.lexsort((words[:, 1], words[:, 0]))


def held_out(paths: Sequence[bytes], share: float) -> np.ndarray:
    """Which images are held out of training, (n,) bool.

    A function of each path alone: images that are added or removed move no other.

    Args:
      paths: relative to the folder of the class folders, encoded, with "/".
      share: in [0, 1), of all images that are held out, on the average.
    """
    limit = int(share * 2**64)
    numbers = (hashlib.sha256(path).digest()[:8] for path in paths)
    return np.array([int.from_bytes(number, "big") < limit for number in numbers], bool)
