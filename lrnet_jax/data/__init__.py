"""Images and labels: open a data set here.

    dataset = open_dataset("fashion_mnist_subset")
    for batch in dataset.train_batches(256, seed=0): ...

The host reads, decodes and crops, and hands out uint8 batches; flips, shifts and normalisation run
on the device (`augment.py`).

    dataset.py     what every data set offers: read this first
    order.py       the order of examples, shared by all of them
    in_memory.py   arrays in memory, and the embedded subset of Fashion-MNIST
    imagenet.py    ImageNet and other sets that TFDS prepared
    loading.py     worker processes that load their batches, bad images
    prepared.py    finds such a set and checks that it is whole
    records.py     random access to its files
    decode.py      from the bytes of an image to a crop
    augment.py     normalisation and augmentation on the device
    mixing.py      Mixup and CutMix on the device
    prefetch.py    transfers the next batches while a step runs
"""

from lrnet_jax.data.dataset import Batch, Dataset
from lrnet_jax.data.in_memory import InMemoryDataset, fashion_mnist_subset
from lrnet_jax.data.prepared import BadImageError, MissingDatasetError
from lrnet_jax.data.records import DamagedDatasetError

__all__ = [
    "BadImageError",
    "Batch",
    "DamagedDatasetError",
    "Dataset",
    "InMemoryDataset",
    "MissingDatasetError",
    "open_dataset",
]


def open_dataset(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    num_workers: int | None = None,
    tolerate_bad_images: int = 0,
) -> Dataset:
    """Opens a data set by name.

    Args:
      name: "fashion_mnist_subset", which ships with the package and needs nothing else;
        "imagenet2012"; or any set of labelled images that TFDS has prepared. Evaluation uses the
        split "validation", or "test" where there is none.
      data_dir: where TFDS put it; None for $TFDS_DATA_DIR or ~/tensorflow_datasets.
      image_size: height and width of the images; None for 28 (embedded) or 224.
      num_workers: processes that load and crop images; None for one per CPU, 0 for none. The
        embedded images need none.
      tolerate_bad_images: how many training images may be unreadable; each is replaced by its
        neighbour and logged. Evaluation never tolerates one.

    Raises:
      MissingDatasetError: it is not on this machine; the message says how to prepare it.
      DamagedDatasetError: its files are missing, cut short or contradict one another.
      ValueError: an argument does not fit.
    """
    if name == "fashion_mnist_subset":
        return fashion_mnist_subset(image_size)
    from lrnet_jax.data import imagenet  # only here: it imports grain

    return imagenet.open_prepared(
        name,
        data_dir=data_dir,
        image_size=image_size,
        num_workers=num_workers,
        tolerate_bad_images=tolerate_bad_images,
    )
