"""ImageNet, and any other set of labelled images that TFDS has prepared, without TensorFlow."""

import resource
import sys
from collections.abc import Mapping

from lrnet_jax.data import prepared
from lrnet_jax.data.on_disk import OnDiskDataset, check_options

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

OPEN_FILES = 8192


def open_prepared(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    num_workers: int | None = None,
    tolerate_bad_images: int = 0,
    choice: prepared.Choice | None = None,
    expected_counts: Mapping[str, int] | None = None,
) -> OnDiskDataset:
    """Opens a data set that TFDS has prepared, after checking that it is complete.

    Args:
      name: "imagenet2012", or any TFDS set of labelled images.
      data_dir: folder of the prepared data sets; None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
      image_size: height and width of the crops; None for 224.
      num_workers: processes that load batches; None for one per CPU, 0 for none.
      tolerate_bad_images: see `OnDiskDataset`.
      choice: the splits and features to read; None for the usual ones.
      expected_counts: images that splits must have; None for those of ImageNet if it is that, else
        what its dataset_info.json has.

    Raises:
      MissingDatasetError: it is not there; the message explains how to prepare it.
      DamagedDatasetError: files are missing, cut short or contradict one another.
      ValueError: an argument does not fit.
    """
    options = check_options(image_size, num_workers, tolerate_bad_images)
    is_imagenet = name.partition(":")[0] == "imagenet2012"
    if expected_counts is None and is_imagenet:
        expected_counts = IMAGENET_COUNTS
    folder = prepared.find(name, data_dir, HOW_TO_PREPARE if is_imagenet else HOW_TO_PREPARE_OTHERS)
    _allow_open_files()
    found = prepared.load(folder, expected_counts, choice)
    return OnDiskDataset(
        name=name,
        train=found.train,
        evaluation=found.evaluation,
        class_names=found.class_names,
        image_size=options.image_size,
        num_workers=options.num_workers,
        tolerate_bad_images=options.tolerate_bad_images,
    )


def _allow_open_files() -> None:
    """Lets this process and its workers hold all shards of ImageNet open: 1024 and some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
