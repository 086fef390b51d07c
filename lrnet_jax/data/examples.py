"""Labelled images on disk, one by one: what every kind of split offers to the loaders."""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


class MissingDatasetError(FileNotFoundError):
    """The data set is not on this machine; the message explains how to get it."""


class BadImageError(RuntimeError):
    """One image cannot be read; the message names it."""


class Example(NamedTuple):
    """One labelled image, still encoded."""

    encoded: bytes
    label: int
    file_name: str  # "" where the data set has none


class Examples(Protocol):
    """The images of a split in their order. Can be sent to other processes."""

    @property
    def name(self) -> str:
        """Name of the split."""
        ...

    @property
    def num_classes(self) -> int:
        """Labels are in [0, num_classes)."""
        ...

    def __len__(self) -> int: ...

    def example(self, index: int) -> Example:
        """Reads example `index`.

        Raises:
          BadImageError: it cannot be read.
        """
        ...

    def decode(self, index: int, example: Example) -> "Image.Image":
        """Decodes example `index`, as read by `example`, to RGB.

        Raises:
          BadImageError: Pillow cannot.
        """
        ...

    def describe(self, index: int, file_name: str = "") -> str:
        """Names an example by its place."""
        ...


class Range(NamedTuple):
    """Examples start to stop - 1 of a split."""

    split: Examples
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Ranges of splits, one after the other.

    Attributes:
      name: the slices as TFDS writes them, such as "train[:90%]".
      ranges: at least one, of splits with the same classes.
    """

    name: str
    ranges: tuple[Range, ...]

    @property
    def num_classes(self) -> int:
        """Labels are in [0, num_classes)."""
        return self.ranges[0].split.num_classes

    def __len__(self) -> int:
        return sum(part.stop - part.start for part in self.ranges)

    def locate(self, index: int) -> tuple[Examples, int]:
        """The split that example `index` comes from, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        ends = np.cumsum([part.stop - part.start for part in self.ranges])
        number = int(np.searchsorted(ends, index, side="right"))
        split, _, stop = self.ranges[number]
        return split, stop - (int(ends[number]) - index)

    def example(self, index: int) -> Example:
        """Reads example `index`; see `Examples.example`."""
        split, index = self.locate(index)
        return split.example(index)

    def decode(self, index: int, example: Example) -> "Image.Image":
        """Decodes example `index`; see `Examples.decode`."""
        split, index = self.locate(index)
        return split.decode(index, example)

    def describe(self, index: int, file_name: str = "") -> str:
        """Names an example by its place in its whole split."""
        split, index = self.locate(index)
        return split.describe(index, file_name)
