"""ImageNet, and any other set of labelled images that TFDS has prepared, without TensorFlow."""

import contextlib
import dataclasses
import logging
import os
import resource
import sys
from collections.abc import Iterator, Mapping

from lrnet_jax.data import order, prepared
from lrnet_jax.data.dataset import Batch
from lrnet_jax.data.decode import shorter_side
from lrnet_jax.data.loading import LAST_STEP, EvalLoader, TrainLoader, load, too_many
from lrnet_jax.data.prepared import Split

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
IMAGENET_COUNTS: Mapping[str, int] = {"train": 1_281_167, "validation": 50_000}
HOW_TO_PREPARE = f"""\
ImageNet cannot be downloaded without an account. To prepare it, in the checkout of lrnet_jax:
  1. get {TRAIN_TAR} and {VALIDATION_TAR} from https://image-net.org/download-images
  2. {sys.executable} -m pip install -e '.[prepare]'
  3. {sys.executable} -m experiments.prepare_imagenet --manual_dir=DIR_OF_BOTH_FILES --data_dir=DIR
and give the same data_dir here, or set TFDS_DATA_DIR."""
HOW_TO_PREPARE_OTHERS = """\
Prepare it with tfds.builder(name, data_dir=DIR).download_and_prepare(), or use "imagenet2012" or
"fashion_mnist_subset", which ships with the package."""

# Of the pixels of ImageNet's training images, R, G, B: the values in use since fb.resnet.torch.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
IMAGE_SIZE = 224
OPEN_FILES = 8192
logger = logging.getLogger(__name__)


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
    def resize(self) -> int:
        """Shorter side of an evaluation image before its central crop."""
        return shorter_side(self.image_size)

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


def open_prepared(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    num_workers: int | None = None,
    tolerate_bad_images: int = 0,
    expected_counts: Mapping[str, int] | None = None,
) -> PreparedDataset:
    """Opens a data set that TFDS has prepared, after checking that it is complete.

    Args:
      name: "imagenet2012", or any TFDS set with one image and one label.
      data_dir: folder of the prepared data sets; None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
      image_size: height and width of the crops; None for 224.
      num_workers: processes that load batches; None for one per CPU, 0 for none.
      tolerate_bad_images: see `PreparedDataset`.
      expected_counts: images that splits must have; None for those of ImageNet if it is that, else
        what its dataset_info.json has.

    Raises:
      MissingDatasetError: it is not there; the message explains how to prepare it.
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


def _allow_open_files() -> None:
    """Lets this process and its workers hold all shards of ImageNet open: 1024 and some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
