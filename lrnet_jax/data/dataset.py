"""What a data set offers to training and evaluation, whatever it reads from."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

Batch = dict[str, np.ndarray]


class Dataset(Protocol):
    """A training and an evaluation split of labelled images."""

    @property
    def name(self) -> str:
        """As given to `open_dataset`."""
        ...

    @property
    def num_classes(self) -> int:
        """Labels are in [0, num_classes)."""
        ...

    @property
    def image_size(self) -> int:
        """Height and width of the images, in training and in evaluation."""
        ...

    @property
    def resize(self) -> int:
        """Shorter side of an evaluation image, of which `image_size` is the centre."""
        ...

    @property
    def num_train(self) -> int:
        """Images of the training split."""
        ...

    @property
    def num_eval(self) -> int:
        """Images of the evaluation split."""
        ...

    @property
    def mean(self) -> tuple[float, float, float]:
        """Means of R, G and B, in 0 to 255, for `augment.normalize`."""
        ...

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviations of R, G and B, in 0 to 255."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name per class, or None where the source has none."""
        ...

    @property
    def digest(self) -> str | None:
        """Changes with the list of the images; None where that cannot change."""
        ...

    def train_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Endless training batches in an order that depends on `seed` alone.

        Every image comes once per epoch; an epoch is num_train / batch_size steps, a fraction in
        general, and no image is dropped (see `lrnet_jax.data.order`).

        Args:
          batch_size: images per step over all processes.
          seed: at least 0. Epoch e is shuffled as a function of (seed, e).
          start_step: the stream begins at this step and equals the rest of one from step 0.
          process_index: this process's number.
          process_count: processes that share each batch; must divide batch_size.

        Returns:
          An iterator of dicts with b = batch_size / process_count rows:
            image: (b, image_size, image_size, 3) uint8, RGB.
            label: (b,) int32.
            index: (b,) int32, the row's place in the global batch. Random numbers on the device are
              keyed by it, so that they do not depend on the number of devices.

        Raises:
          ValueError: at once, where an argument does not fit.
        """
        ...

    def eval_batches(
        self, batch_size: int, *, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """Every evaluation image exactly once, in the order of the split.

        Args:
          batch_size: images per step over all processes.
          process_index: this process's number.
          process_count: processes that share each batch; must divide batch_size.

        Returns:
          An iterator of ceil(num_eval / batch_size) dicts, equally many in every process, with the
          rows of `train_batches`, except:
            index: (b,) int32, the image's place in the split; num_eval and above where padded.
            mask: (b,) bool, False where the row is padding (a black image of class 0) that fills
              the last batch.
        """
        ...
