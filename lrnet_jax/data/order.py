"""The order of examples in the training stream and in the evaluation split.

The training stream is one endless row of examples: the permutations of epoch 0, 1, 2, ... one
after the other. Step s with global batch size B takes positions s*B to (s+1)*B - 1, so an epoch is
num_train / B steps, in general not a whole number. A run resumes from the step number alone:

    epoch    = position // num_train
    example  = permutation(seed, epoch)[position % num_train]

No image is dropped at the end of an epoch: each comes exactly once per epoch, and the batch that
straddles two epochs holds the end of one and the start of the next.

With several processes, each takes one contiguous block of every global batch. The blocks side by
side are the batch of a single process.
"""

import functools
from typing import NamedTuple

import numpy as np


class Share(NamedTuple):
    """The rows of each global batch that one process loads."""

    batch_size: int  # global
    first: int
    rows: int

    def positions(self, step: int) -> np.ndarray:
        """Positions (rows,) int64 in the stream, or in the evaluation split, at one step."""
        return step * self.batch_size + self.first + np.arange(self.rows)


def share(batch_size: int, process_index: int, process_count: int) -> Share:
    """One process's rows of the global batch.

    Raises:
      ValueError: the sizes do not fit together.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must be in [0, process_count), got {process_index} of {process_count}"
        )
    if batch_size % process_count:
        raise ValueError(
            f"batch_size is the global one and must be a multiple of the {process_count} "
            f"processes, got {batch_size}; use {batch_size // process_count * process_count} "
            f"or {-(-batch_size // process_count) * process_count}"
        )
    rows = batch_size // process_count
    return Share(batch_size, process_index * rows, rows)


def training_examples(
    positions: np.ndarray, num_train: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Examples at the given positions of the training stream.

    Args:
      positions: (n,) int64, at least 0.
      num_train: images in the split.
      seed: at least 0.

    Returns:
      Two (n,) int64 arrays: the epoch, and the example's index in the split.
    """
    epochs, within = np.divmod(positions, num_train)
    examples = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        examples[here] = _permutation(num_train, seed, int(epoch))[within[here]]
    return epochs, examples


def evaluation_examples(positions: np.ndarray, num_eval: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples at the given positions of the padded evaluation split.

    Returns:
      (n,) int64 index, 0 where padded, and (n,) bool mask, False where padded.
    """
    mask = positions < num_eval
    return np.where(mask, positions, 0), mask


def evaluation_steps(num_eval: int, batch_size: int) -> int:
    """Batches that cover the split, the same number in every process."""
    return -(-num_eval // batch_size)


def check_stream(seed: int, start_step: int) -> None:
    """Raises ValueError where `seed` or `start_step` is negative."""
    for name, number in (("seed", seed), ("start_step", start_step)):
        if number < 0:
            raise ValueError(f"{name} must be at least 0, got {number}")


# Two, because one batch straddles two epochs.
@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng((seed, epoch)).permutation(count)
    order.flags.writeable = False
    return order
