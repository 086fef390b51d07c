"""Images that are read from files while a run goes on: the same for records and for folders."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from typing import NamedTuple

from lrnet_jax.data import order
from lrnet_jax.data.dataset import Batch
from lrnet_jax.data.decode import shorter_side
from lrnet_jax.data.examples import Examples
from lrnet_jax.data.loading import LAST_STEP, EvalLoader, TrainLoader, load, too_many

# Of the pixels of ImageNet's training images, R, G, B: the values in use since fb.resnet.torch.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
IMAGE_SIZE = 224
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class OnDiskDataset:
    """A `Dataset` over files; see `lrnet_jax.data.dataset` for the members.

    Training images are random-resized crops, a function of (seed, epoch, image); evaluation images
    are central crops (see `decode`).

    Attributes:
      train: the training split.
      evaluation: the evaluation split.
      num_workers: processes that load batches; 0 loads them in this one.
      tolerate_bad_images: how many distinct training images may be unreadable. Each is replaced by
        the next of the split and logged. Evaluation never tolerates one.
    """

    name: str
    train: Examples
    evaluation: Examples
    class_names: tuple[str, ...] | None
    image_size: int
    num_workers: int
    tolerate_bad_images: int
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    digest: str | None = None

    @property
    def num_classes(self) -> int:
        """Labels are in [0, num_classes)."""
        return self.train.num_classes

    @property
    def resize(self) -> int:
        """Shorter side of an evaluation image before its central crop."""
        return shorter_side(self.image_size)

    @property
    def num_train(self) -> int:
        """Images of the training split."""
        return len(self.train)

    @property
    def num_eval(self) -> int:
        """Images of the evaluation split."""
        return len(self.evaluation)

    def train_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Endless training batches; see `Dataset.train_batches`.

        The iterator raises BadImageError where an image cannot be read and is not tolerated.
        """
        order.check_stream(seed, start_step)
        share = order.share(batch_size, process_index, process_count)
        loader = TrainLoader(self.train, self.image_size, share, seed, self.tolerate_bad_images)
        return self._train_batches(loader, start_step)

    def _train_batches(self, loader: TrainLoader, start_step: int) -> Iterator[Batch]:
        bad: set[int] = set()
        with contextlib.closing(load(loader, start_step, LAST_STEP, self.num_workers)) as loaded:
            for batch, faults in loaded:
                for fault in faults:
                    if fault.example not in bad:
                        bad.add(fault.example)
                        logger.warning(
                            "replaced bad image, %d of %d tolerated: %s",
                            len(bad),
                            self.tolerate_bad_images,
                            fault.message,
                        )
                if len(bad) > self.tolerate_bad_images:
                    raise too_many(len(bad), self.tolerate_bad_images, faults)
                yield batch

    def eval_batches(
        self, batch_size: int, *, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """The evaluation split once; see `Dataset.eval_batches`.

        The iterator raises BadImageError where an image cannot be read.
        """
        share = order.share(batch_size, process_index, process_count)
        loader = EvalLoader(self.evaluation, self.image_size, share)
        return self._eval_batches(loader, order.evaluation_steps(self.num_eval, batch_size))

    def _eval_batches(self, loader: EvalLoader, steps: int) -> Iterator[Batch]:
        with contextlib.closing(load(loader, 0, steps, self.num_workers)) as loaded:
            for batch, _ in loaded:
                yield batch


class Reading(NamedTuple):
    """How images are read: the fields of an `OnDiskDataset` of these names."""

    image_size: int
    num_workers: int
    tolerate_bad_images: int


def check_options(
    image_size: int | None, num_workers: int | None, tolerate_bad_images: int
) -> Reading:
    """How to read images, with the defaults for None.

    Raises:
      ValueError: one is too small.
    """
    options = Reading(
        IMAGE_SIZE if image_size is None else image_size,
        (os.cpu_count() or 1) if num_workers is None else num_workers,
        tolerate_bad_images,
    )
    for name, number in options._asdict().items():
        least = 1 if name == "image_size" else 0
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")
    return options
