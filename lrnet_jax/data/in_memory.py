"""A data set held in memory, and the one that ships with the package."""

import dataclasses
import functools
import importlib.resources
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lrnet_jax.data import order
from lrnet_jax.data.dataset import Batch

FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
TILE = 28  # height and width of an image in the sheets
TILES_PER_ROW = 100


@dataclasses.dataclass(frozen=True, eq=False)
class InMemoryDataset:
    """A `Dataset` over arrays; see `lrnet_jax.data.dataset` for what each member means.

    Attributes:
      train_images: (num_train, H, H, channels) uint8; 1 channel is repeated to 3 in batches.
      train_labels: (num_train,) integers in [0, num_classes).
      eval_images: (num_eval, H, H, channels) uint8.
      eval_labels: (num_eval,).
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    eval_images: np.ndarray
    eval_labels: np.ndarray
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...] | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        for split in ("train", "eval"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            shape = images.shape
            if images.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
                raise ValueError(
                    f"{split}_images must be uint8 (n, H, W, 1 or 3), got {images.dtype} {shape}"
                )
            if shape[1:3] != (self.image_size, self.image_size):
                raise ValueError(
                    f"{split}_images must be square and of one size, {self.image_size}; got {shape}"
                )
            if labels.shape != shape[:1] or not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(
                    f"{split}_labels must be {shape[:1]} integers, got {labels.dtype} "
                    f"{labels.shape}"
                )
            if not len(labels):
                raise ValueError(f"{split}_images must not be empty")
            if labels.min() < 0 or labels.max() >= self.num_classes:
                raise ValueError(
                    f"{split}_labels must be in [0, {self.num_classes}), got "
                    f"{labels.min()} to {labels.max()}"
                )

    @property
    def image_size(self) -> int:
        """Height and width of the images."""
        return self.train_images.shape[1]

    @property
    def resize(self) -> int:
        """The images are not cropped."""
        return self.image_size

    @property
    def num_train(self) -> int:
        """Images of the training split."""
        return len(self.train_labels)

    @property
    def num_eval(self) -> int:
        """Images of the evaluation split."""
        return len(self.eval_labels)

    def train_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Endless training batches; see `Dataset.train_batches`."""
        order.check_stream(seed, start_step)
        share = order.share(batch_size, process_index, process_count)
        return self._train_batches(share, seed, start_step)

    def _train_batches(self, share: order.Share, seed: int, start_step: int) -> Iterator[Batch]:
        index = np.arange(share.first, share.first + share.rows, dtype=np.int32)
        for step in itertools.count(start_step):
            _, examples = order.training_examples(share.positions(step), self.num_train, seed)
            yield {
                "image": _three_channels(self.train_images[examples]),
                "label": self.train_labels[examples].astype(np.int32),
                "index": index.copy(),
            }

    def eval_batches(
        self, batch_size: int, *, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """The evaluation split once; see `Dataset.eval_batches`."""
        share = order.share(batch_size, process_index, process_count)
        return self._eval_batches(share)

    def _eval_batches(self, share: order.Share) -> Iterator[Batch]:
        for step in range(order.evaluation_steps(self.num_eval, share.batch_size)):
            positions = share.positions(step)
            examples, mask = order.evaluation_examples(positions, self.num_eval)
            images = self.eval_images[examples]
            images[~mask] = 0
            yield {
                "image": _three_channels(images),
                "label": np.where(mask, self.eval_labels[examples], 0).astype(np.int32),
                "index": positions.astype(np.int32),
                "mask": mask,
            }


class Part(NamedTuple):
    """A part of the embedded images.

    Attributes:
      classes: which of the ten; their labels are counted from 0.
      train_images: the number of training images of each class.
    """

    classes: range
    train_images: int = 1000


EMBEDDED = {
    "fashion_mnist_subset": Part(range(10)),
    "fashion_mnist_first_half": Part(range(5)),
    "fashion_mnist_second_half_tenth": Part(range(5, 10), 100),
}


def fashion_mnist_subset(
    image_size: int | None = None, name: str = "fashion_mnist_subset"
) -> InMemoryDataset:
    """The embedded data: 10,000 + 2,000 images of Fashion-MNIST, 28 x 28, ten balanced classes.

    A fixed subset, training images from the official training split and evaluation images from the
    official test split, so figures measured on it are not comparable with those of Fashion-MNIST.
    `make_fashion_mnist.py` made the two sheets; the licence is beside them.

    Args:
      image_size: None for 28, or a size to which the images are enlarged or reduced (bicubic).
      name: the whole, or one of the parts in `EMBEDDED`: the classes 0 to 4; a tenth of the
        training images of the classes 5 to 9, with all their evaluation images. All have one
        normalisation.

    Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST", arXiv 1708.07747. MIT licence.
    """
    if image_size is None:
        image_size = TILE
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}; None means {TILE}")
    train, evaluation = (read_sheet(f"fashion_mnist_{split}.png") for split in ("train", "test"))
    # Over the 10,000 training images, background included.
    mean, std = float(train.mean()), float(train.std())
    if image_size != TILE:
        train, evaluation = (_resize(images, image_size) for images in (train, evaluation))
    classes, count = EMBEDDED[name]
    train_images, train_labels = _of_classes(train, classes, count)
    eval_images, eval_labels = _of_classes(evaluation, classes, len(evaluation))
    return InMemoryDataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        eval_images=eval_images,
        eval_labels=eval_labels,
        num_classes=len(classes),
        mean=(mean,) * 3,
        std=(std,) * 3,
        class_names=tuple(FASHION_CLASSES[label] for label in classes),
    )


@functools.cache
def read_sheet(name: str) -> np.ndarray:
    """Cuts a sheet of the package into its images, (n, 28, 28, 1) uint8, read-only."""
    from PIL import Image

    file = importlib.resources.files("lrnet_jax.data").joinpath(name)
    with file.open("rb") as stream, Image.open(stream) as image:
        sheet = np.asarray(image)
    rows = sheet.shape[0] // TILE
    tiles = sheet.reshape(rows, TILE, TILES_PER_ROW, TILE).transpose(0, 2, 1, 3)
    images = tiles.reshape(rows * TILES_PER_ROW, TILE, TILE, 1)
    images.flags.writeable = False
    return images


def sheet_labels(count: int) -> np.ndarray:
    """Labels (count,) int32 of a sheet: equally many images of each class, in class order."""
    classes = len(FASHION_CLASSES)
    return np.repeat(np.arange(classes, dtype=np.int32), count // classes)


def _of_classes(images: np.ndarray, classes: range, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images of each class of a sheet, and their labels counted from 0."""
    each = len(images) // len(FASHION_CLASSES)
    place, label = np.arange(len(images)) % each, sheet_labels(len(images))
    chosen = (place < count) & np.isin(label, classes)
    return images[chosen], label[chosen] - classes.start


def _resize(images: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    resized = [
        np.asarray(Image.fromarray(image[..., 0]).resize((size, size), Image.Resampling.BICUBIC))
        for image in images
    ]
    return np.stack(resized)[..., None]


def _three_channels(images: np.ndarray) -> np.ndarray:
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)
