"""Images and labels: open a data set here.

    dataset = open_dataset("fashion_mnist_subset")
    for batch in dataset.train_batches(256, seed=0): ...

The host reads, decodes and crops, and hands out uint8 batches; flips, shifts and normalisation run
on the device (`augment.py`).

    dataset.py             what every data set offers: read this first
    order.py               the order of examples, shared by all of them
    in_memory.py           arrays in memory, and the embedded subset of Fashion-MNIST
    augment.py             normalisation and augmentation on the device
    prefetch.py            transfers the next batches while a step runs
"""

from lrnet_jax.data.dataset import Batch, Dataset
from lrnet_jax.data.in_memory import InMemoryDataset, fashion_mnist_subset

__all__ = ["Batch", "Dataset", "InMemoryDataset", "open_dataset"]


def open_dataset(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Opens a data set by name.

    Args:
      name: "fashion_mnist_subset", which ships with the package.
      data_dir: where prepared data sets lie; the embedded one needs none.
      image_size: height and width of the images, or None for the data set's own.

    Raises:
      ValueError: an argument does not fit.
    """
    if name == "fashion_mnist_subset":
        return fashion_mnist_subset(image_size)
    raise ValueError(f"name must be 'fashion_mnist_subset', got {name!r}")
