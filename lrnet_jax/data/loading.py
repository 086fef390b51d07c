"""Worker processes that read, decode and crop whole batches (grain, Pillow).

A batch depends on its step alone, so the stream is the same for any number of workers and resumes
from the step number.
"""

import dataclasses
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, cast

import grain
import jax
import numpy as np
from absl import flags
from grain._src.python.ipc import shared_memory_array

from lrnet_jax.data import decode, order
from lrnet_jax.data.dataset import Batch
from lrnet_jax.data.examples import BadImageError, Examples

LAST_STEP = 1 << 40  # the stream is endless; grain wants a length


class Fault(NamedTuple):
    """A training image that could not be read and was replaced."""

    example: int
    message: str


class Loaded(NamedTuple):
    """A batch and what went wrong with it."""

    batch: Batch
    faults: tuple[Fault, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainLoader:
    """Loads the training batch of a step."""

    split: Examples
    image_size: int
    share: order.Share
    seed: int
    tolerate: int

    def __call__(self, step: int) -> Loaded:
        """Loads the rows of this process."""
        count = len(self.split)
        epochs, examples = order.training_examples(self.share.positions(step), count, self.seed)
        batch = _empty_batch(self.share.rows, self.image_size)
        faults: list[Fault] = []
        for row, (epoch, index) in enumerate(zip(epochs, examples, strict=True)):
            image, label = self._load(int(epoch), int(index), faults)
            batch["image"][row], batch["label"][row] = image, label
        batch["index"][:] = np.arange(self.share.first, self.share.first + self.share.rows)
        return Loaded(batch, tuple(faults))

    def _load(self, epoch: int, index: int, faults: list[Fault]) -> tuple[np.ndarray, int]:
        count = len(self.split)
        # More bad images in a row than tolerated in all need not be skipped.
        for candidate in range(index, index + self.tolerate + 1):
            candidate %= count
            try:
                return self._crop(epoch, candidate)
            except BadImageError as error:
                if not self.tolerate:
                    raise BadImageError(
                        f"{error}; mend or remove it, or set tolerate_bad_images=1 to train "
                        "without it"
                    ) from error
                faults.append(Fault(candidate, str(error)))
        raise too_many(len(faults), self.tolerate, faults)

    def _crop(self, epoch: int, index: int) -> tuple[np.ndarray, int]:
        example = self.split.example(index)
        image = self.split.decode(index, example)
        # The 1 keeps these numbers apart from those of the permutations, keyed (seed, epoch).
        random = np.random.default_rng((self.seed, epoch, index, 1))
        box = decode.random_resized_box(image.width, image.height, random)
        return decode.crop(image, box, self.image_size), example.label


@dataclasses.dataclass(frozen=True, eq=False)
class EvalLoader:
    """Loads the evaluation batch of a step."""

    split: Examples
    image_size: int
    share: order.Share

    def __call__(self, step: int) -> Loaded:
        """Loads the rows of this process."""
        positions = self.share.positions(step)
        examples, mask = order.evaluation_examples(positions, len(self.split))
        batch = _empty_batch(self.share.rows, self.image_size)
        for row in np.flatnonzero(mask):
            index = int(examples[row])
            example = self.split.example(index)
            image = self.split.decode(index, example)
            batch["image"][row] = decode.central_crop(image, self.image_size)
            batch["label"][row] = example.label
        batch["index"][:] = positions
        return Loaded(batch | {"mask": mask}, ())


def too_many(count: int, tolerate: int, faults: Sequence[Fault]) -> BadImageError:
    """The error of more bad images than tolerated."""
    return BadImageError(
        f"{count} bad images, tolerate_bad_images is {tolerate}; the last: {faults[-1].message}"
    )


def _empty_batch(rows: int, image_size: int) -> Batch:
    return {
        "image": np.zeros((rows, image_size, image_size, 3), np.uint8),
        "label": np.zeros(rows, np.int32),
        "index": np.zeros(rows, np.int32),
    }


def load(
    loader: Callable[[int], Loaded], start: int, stop: int, num_workers: int
) -> Generator[Loaded, None, None]:
    """Loads the batches of steps start to stop - 1, in order; workers end with the iterator."""
    # grain reads an absl flag, which only an absl program has parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    steps = grain.MapDataset.range(start, stop).map(cast(Any, loader))
    # A step is a batch already. Each worker reads one batch ahead, and nothing else does.
    batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    iterator = iter(
        batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers),
            worker_init_fn=_start_worker,
        )
    )
    try:
        # map, because a loop variable would hold the batch in shared memory while its copy is used.
        yield from map(_copy, iterator) if num_workers else iterator
    finally:
        iterator.close()
        # grain's iterators refer to one another and hold the last batch in shared memory.
        del iterator
        gc.collect()
        _wait_for_shared_memory()


def _copy(loaded: Loaded) -> Loaded:
    """Copies a batch out of the memory shared with its worker, so that this can be given back.

    grain gives it back in the background, when the last reference goes. One that is held to the end
    of the program would be reported as leaked. (0.7 ms for 64 crops, which take 170 ms to make.)
    """
    return Loaded({name: np.array(array) for name, array in loaded.batch.items()}, loaded.faults)


def _wait_for_shared_memory() -> None:
    """Waits until grain's thread has given back all shared memory that is no longer referred to.

    A program that ends before would drop the rest of the thread's work, and Python report a leak.
    grain has no public name for it. Its one thread works in order, so a last job ends last.
    """
    background = shared_memory_array.SharedMemoryArray._del_thread_pool
    if background is not None:
        background.apply(int)


def _start_worker(worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count
    decode.keep_memory()
    _stay_off_the_devices()
    _follow_parent()


def _stay_off_the_devices() -> None:
    """Keeps JAX in this worker, which has no use for it, from taking a GPU's memory."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # for processes that a worker starts
    jax.config.update("jax_platforms", "cpu")


def _follow_parent() -> None:
    """Lets the process that started this worker alone decide when it ends.

    A terminal and some schedulers signal all processes of a job. The parent may want to finish a
    step and save first, for which it needs its workers; and a parent that was killed outright
    cannot end them.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="follow parent", daemon=True).start()
