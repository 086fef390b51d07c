"""Images in class folders: listed, in the order of TFDS, read one by one."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lrnet_jax.data import listing
from lrnet_jax.data.decode import decode
from lrnet_jax.data.examples import BadImageError, Example
from lrnet_jax.data.listing import Paths
from lrnet_jax.data.records import DamagedDatasetError

if TYPE_CHECKING:
    from PIL import Image

SALTS = {"val": "validation"}  # the name of the split in TFDS, where it differs from the folder's
SHOWN = 3  # names in a message
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSplit:
    """Images in class folders. Can be sent to other processes.

    Attributes:
      name: of the split.
      folder: the folder of the class folders.
      paths: of the images, within `folder`.
      labels: (n,) int32.
      num_classes: labels are in [0, num_classes).
    """

    name: str
    folder: str
    paths: Paths
    labels: np.ndarray
    num_classes: int

    def __len__(self) -> int:
        return len(self.paths)

    def example(self, index: int) -> Example:
        """Reads example `index`.

        Raises:
          BadImageError: the file cannot be read.
        """
        path = self.paths[index]
        try:
            encoded = pathlib.Path(self.folder, path).read_bytes()
        except OSError as error:
            raise BadImageError(f"{self.describe(index)}: {error.strerror}") from error
        return Example(encoded, int(self.labels[index]), path)

    def decode(self, index: int, example: Example) -> "Image.Image":
        """Decodes example `index`, as read by `example`, to RGB.

        Raises:
          BadImageError: Pillow cannot.
        """
        try:
            return decode(example.encoded)
        except Exception as error:  # Pillow's plugins raise anything from OSError to SyntaxError
            reason = str(error).partition(" <_io")[0] if example.encoded else "the file is empty"
            raise BadImageError(f"{self.describe(index)}: {reason}") from error

    def describe(self, index: int, file_name: str = "") -> str:
        """Names an example: path, index, split."""
        del file_name  # the path has it
        path = pathlib.Path(self.folder, self.paths[index])
        return f"{path} (image {index} of split {self.name})"


class Listed(NamedTuple):
    """The images of class folders, class by class.

    Attributes:
      folder: the folder of the class folders.
      classes: their names, in the order of the labels.
      paths: of the images, within `folder`, encoded.
      labels: (n,) int32.
    """

    folder: pathlib.Path
    classes: tuple[str, ...]
    paths: list[bytes]
    labels: np.ndarray

    def split(self, name: str, where: np.ndarray | None = None) -> FolderSplit:
        """Some of the images as a split, in the order in which TFDS would write them.

        Args:
          name: of the split.
          where: (n,) bool, those that belong to it; None for all.
        """
        chosen = range(len(self.paths)) if where is None else np.flatnonzero(where)
        paths = [self.paths[i] for i in chosen]
        order = listing.shuffled(paths, SALTS.get(name, name))
        return FolderSplit(
            name=name,
            folder=str(self.folder),
            paths=Paths.pack([paths[i] for i in order]),
            labels=self.labels[chosen][order],
            num_classes=len(self.classes),
        )


def list_folder(folder: pathlib.Path, classes: Sequence[str] | None = None) -> Listed:
    """Lists the images of class folders.

    Args:
      folder: the folder of the class folders.
      classes: names in the order of the labels, some of which may have no folder here; None for
        those of the class folders.

    Raises:
      DamagedDatasetError: there is a class folder without images, one that is not among the
        classes, or there are less than two classes.
    """
    present, stray = listing.class_folders(folder), listing.stray_images(folder)
    if stray:
        logger.warning("%s: left out, in no class folder: %s", folder, some(stray))
    if classes is None:
        classes = present
        if len(present) < 2:
            found = f"one class only, {present[0]!r}" if present else "no class folders"
            raise DamagedDatasetError(
                f"{folder} has {found}; images belong in a folder for each of at least two "
                f"classes, as in {folder}/CLASS/1.jpg"
            )
    unknown = sorted(set(present) - set(classes))
    if unknown:
        raise DamagedDatasetError(
            f"{folder} has classes that training has not: {some(unknown)}; rename or move them"
        )
    contents = listing.list_images(folder, present)
    others = [
        f"{name}/{other}" for name, c in zip(present, contents, strict=True) for other in c.others
    ]
    if others:
        logger.info("%s: left out, as no images: %s", folder, some(others))
    empty = [name for name, content in zip(present, contents, strict=True) if not content.images]
    if empty:
        raise DamagedDatasetError(
            f"{folder} has class folders without images: {some(empty)}; add images "
            f"({', '.join(sorted(listing.SUFFIXES))}) or remove the folders"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    paths = [
        os.fsencode(name + "/") + path
        for name, content in zip(present, contents, strict=True)
        for path in sorted(content.images)
    ]
    labels = np.repeat([numbers[name] for name in present], [len(c.images) for c in contents])
    return Listed(folder, tuple(classes), paths, labels.astype(np.int32))


def some(names: Sequence[str]) -> str:
    """The first few of some names."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
