"""ImageNet, and any other set of labelled images that TFDS has prepared, without TensorFlow.

Worker processes read, decode and crop whole batches (grain, Pillow); a batch depends on the step
alone, so the stream is the same for any number of workers and resumes from the step number.
"""

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import grain
import numpy as np
from absl import flags

from lrnet_jax.data import decode, order, prepared
from lrnet_jax.data.dataset import Batch
from lrnet_jax.data.prepared import BadImageError, Split

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
IMAGENET_COUNTS: Mapping[str, int] = {"train": 1_281_167, "validation": 50_000}
HOW_TO_PREPARE = f"""\
ImageNet cannot be downloaded without an account. To prepare it:
  1. get {TRAIN_TAR} and {VALIDATION_TAR} from https://image-net.org/download-images
  2. pip install 'lrnet-jax[prepare]'
  3. python -m experiments.prepare_imagenet --manual_dir=DIR_OF_BOTH_FILES --data_dir=DIR
and give the same data_dir here, or set TFDS_DATA_DIR."""
HOW_TO_PREPARE_OTHERS = """\
Prepare it with tfds.builder(name, data_dir=DIR).download_and_prepare(), or use "imagenet2012" or
"fashion_mnist_subset", which ships with the package."""

# Of the pixels of ImageNet's training images, R, G, B: the values in use since fb.resnet.torch.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
IMAGE_SIZE = 224
LAST_STEP = 1 << 40  # the stream is endless; grain wants a length
OPEN_FILES = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedDataset:
    """A `Dataset` over files that TFDS prepared; see `lrnet_jax.data.dataset` for the members.

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
    train: Split
    evaluation: Split
    class_names: tuple[str, ...] | None
    image_size: int
    num_workers: int
    tolerate_bad_images: int
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    @property
    def num_classes(self) -> int:
        """Labels are in [0, num_classes)."""
        return self.train.num_classes

    @property
    def num_train(self) -> int:
        """Images of the training split."""
        return len(self.train.records)

    @property
    def num_eval(self) -> int:
        """Images of the evaluation split."""
        return len(self.evaluation.records)

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
        loader = _TrainLoader(self.train, self.image_size, share, seed, self.tolerate_bad_images)
        return self._train_batches(loader, start_step)

    def _train_batches(self, loader: "_TrainLoader", start_step: int) -> Iterator[Batch]:
        bad: set[int] = set()
        with contextlib.closing(_load(loader, start_step, LAST_STEP, self.num_workers)) as loaded:
            for batch, faults in loaded:
                for fault in faults:
                    if fault.example not in bad:
                        bad.add(fault.example)
                        logging.warning(
                            "replaced bad image, %d of %d tolerated: %s",
                            len(bad),
                            self.tolerate_bad_images,
                            fault.message,
                        )
                if len(bad) > self.tolerate_bad_images:
                    raise _too_many(len(bad), self.tolerate_bad_images, faults)
                yield batch

    def eval_batches(
        self, batch_size: int, *, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """The evaluation split once; see `Dataset.eval_batches`.

        The iterator raises BadImageError where an image cannot be read.
        """
        share = order.share(batch_size, process_index, process_count)
        loader = _EvalLoader(self.evaluation, self.image_size, share)
        return self._eval_batches(loader, order.evaluation_steps(self.num_eval, batch_size))

    def _eval_batches(self, loader: "_EvalLoader", steps: int) -> Iterator[Batch]:
        with contextlib.closing(_load(loader, 0, steps, self.num_workers)) as loaded:
            for batch, _ in loaded:
                yield batch


def open_prepared(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    num_workers: int | None = None,
    tolerate_bad_images: int = 0,
    expected_counts: Mapping[str, int] | None = None,
) -> PreparedDataset:
    """Opens a data set that TFDS has prepared, after checking that it is whole.

    Args:
      name: "imagenet2012", or any TFDS set with one image and one label.
      data_dir: where it lies; None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
      image_size: height and width of the crops; None for 224.
      num_workers: processes that load batches; None for one per CPU, 0 for none.
      tolerate_bad_images: see `PreparedDataset`.
      expected_counts: images that splits must have; None for those of ImageNet if it is that, else
        what the data set says of itself.

    Raises:
      MissingDatasetError: it is not there; says how to prepare it.
      DamagedDatasetError: files are missing, cut short or contradict one another.
      ValueError: an argument does not fit.
    """
    image_size = IMAGE_SIZE if image_size is None else image_size
    num_workers = (os.cpu_count() or 1) if num_workers is None else num_workers
    for argument, number, least in (
        ("image_size", image_size, 1),
        ("num_workers", num_workers, 0),
        ("tolerate_bad_images", tolerate_bad_images, 0),
    ):
        if number < least:
            raise ValueError(f"{argument} must be at least {least}, got {number}")
    is_imagenet = name.partition(":")[0] == "imagenet2012"
    if expected_counts is None and is_imagenet:
        expected_counts = IMAGENET_COUNTS
    folder = prepared.find(name, data_dir, HOW_TO_PREPARE if is_imagenet else HOW_TO_PREPARE_OTHERS)
    _allow_open_files()
    found = prepared.load(folder, expected_counts)
    return PreparedDataset(
        name=name,
        train=found.train,
        evaluation=found.evaluation,
        class_names=found.class_names,
        image_size=image_size,
        num_workers=num_workers,
        tolerate_bad_images=tolerate_bad_images,
    )


class _Fault(NamedTuple):
    example: int
    message: str


class _Loaded(NamedTuple):
    batch: Batch
    faults: tuple[_Fault, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _TrainLoader:
    """Loads the training batch of a step."""

    split: Split
    image_size: int
    share: order.Share
    seed: int
    tolerate: int

    def __call__(self, step: int) -> _Loaded:
        count = len(self.split.records)
        epochs, examples = order.training_examples(self.share.positions(step), count, self.seed)
        batch = _empty_batch(self.share.rows, self.image_size)
        faults: list[_Fault] = []
        for row, (epoch, index) in enumerate(zip(epochs, examples, strict=True)):
            image, label = self._load(int(epoch), int(index), faults)
            batch["image"][row], batch["label"][row] = image, label
        batch["index"][:] = np.arange(self.share.first, self.share.first + self.share.rows)
        return _Loaded(batch, tuple(faults))

    def _load(self, epoch: int, index: int, faults: list[_Fault]) -> tuple[np.ndarray, int]:
        count = len(self.split.records)
        # More bad images in a row than tolerated in all need not be skipped.
        for candidate in range(index, index + self.tolerate + 1):
            candidate %= count
            try:
                return self._crop(epoch, candidate)
            except BadImageError as error:
                if not self.tolerate:
                    raise
                faults.append(_Fault(candidate, str(error)))
        raise _too_many(len(faults), self.tolerate, faults)

    def _crop(self, epoch: int, index: int) -> tuple[np.ndarray, int]:
        example = self.split.example(index)
        image = self.split.decode(index, example)
        # The 1 keeps these numbers apart from those of the permutations, keyed (seed, epoch).
        random = np.random.default_rng((self.seed, epoch, index, 1))
        box = decode.random_resized_box(image.width, image.height, random)
        return decode.crop(image, box, self.image_size), example.label


@dataclasses.dataclass(frozen=True, eq=False)
class _EvalLoader:
    """Loads the evaluation batch of a step."""

    split: Split
    image_size: int
    share: order.Share

    def __call__(self, step: int) -> _Loaded:
        positions = self.share.positions(step)
        examples, mask = order.evaluation_examples(positions, len(self.split.records))
        batch = _empty_batch(self.share.rows, self.image_size)
        for row in np.flatnonzero(mask):
            index = int(examples[row])
            example = self.split.example(index)
            image = self.split.decode(index, example)
            box = decode.central_box(image.width, image.height)
            batch["image"][row] = decode.crop(image, box, self.image_size)
            batch["label"][row] = example.label
        batch["index"][:] = positions
        return _Loaded(batch | {"mask": mask}, ())


def _too_many(count: int, tolerate: int, faults: Sequence[_Fault]) -> BadImageError:
    return BadImageError(
        f"{count} bad images, tolerate_bad_images is {tolerate}; the last: {faults[-1].message}"
    )


def _empty_batch(rows: int, image_size: int) -> Batch:
    return {
        "image": np.zeros((rows, image_size, image_size, 3), np.uint8),
        "label": np.zeros(rows, np.int32),
        "index": np.zeros(rows, np.int32),
    }


def _load(
    loader: Callable[[int], _Loaded], start: int, stop: int, num_workers: int
) -> Generator[_Loaded, None, None]:
    """Loads the batches of steps start to stop - 1, in order; workers end with the iterator."""
    # grain reads a flag of its own that only an absl program has parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    steps = grain.MapDataset.range(start, stop).map(cast(Any, loader))
    # A step is a whole batch already: reading ahead is left to the workers, one batch each.
    batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    iterator = iter(
        batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers),
            worker_init_fn=_follow_parent,
        )
    )
    try:
        yield from iterator
    finally:
        iterator.close()


def _follow_parent(worker_index: int, worker_count: int) -> None:
    """Lets the process that started this worker alone decide when it ends.

    A terminal and some schedulers signal all processes of a job. The parent may want to finish a
    step and save first, for which it needs its workers; and a parent that was killed outright
    cannot end them.
    """
    del worker_index, worker_count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="follow parent", daemon=True).start()


def _allow_open_files() -> None:
    """Lets this process and its workers hold all shards of ImageNet open: 1024 and some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
