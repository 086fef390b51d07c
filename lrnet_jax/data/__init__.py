"""Images and labels: open a data set here.

    dataset = open_dataset("fashion_mnist_subset")
    for batch in dataset.train_batches(256, seed=0): ...

The host reads, decodes and crops, and hands out uint8 batches; flips, shifts and normalisation run
on the device (`augment.py`).

    dataset.py     what every data set offers: read this first
    order.py       the order of examples, shared by all of them
    in_memory.py   arrays in memory, and the embedded subset of Fashion-MNIST
    on_disk.py     images that are read from files while a run goes on
    loading.py     worker processes that load their batches, bad images
    examples.py    what a split on disk offers to them
    splits.py      slices of splits
    folder.py      a folder of images: its splits
    class_folders.py  the images of a split of it
    flat_imagenet.py  ImageNet's validation images, which come without class folders
    listing.py     lists their files, and orders them
    imagenet.py    ImageNet and other sets that TFDS prepared
    prepared.py    finds such a set and checks that it is whole
    records.py     random access to its files
    decode.py      from the bytes of an image to a crop
    augment.py     normalisation and augmentation on the device
    mixing.py      Mixup and CutMix on the device
    rand_augment.py     RandAugment on the device
    random_erasing.py   random erasing on the device
    prefetch.py    transfers the next batches while a step runs
"""

from typing import Any

from lrnet_jax.data.dataset import Batch, Dataset
from lrnet_jax.data.examples import BadImageError, MissingDatasetError
from lrnet_jax.data.in_memory import EMBEDDED, InMemoryDataset, fashion_mnist_subset
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
    holdout: float = 0.0,
    train_split: str | None = None,
    eval_split: str | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
) -> Dataset:
    """Opens a data set by name.

    Args:
      name: one of `in_memory.EMBEDDED`, which ship with the package and need nothing else;
        "folder", a folder of images (see `folder.py`); "imagenet2012"; or any set of labelled
        images that TFDS has prepared.
      data_dir: the folder of images, or where TFDS put its sets; None for $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      image_size: height and width of the images; None for 28 (embedded) or 224.
      num_workers: processes that load and crop images; None for one per CPU, 0 for none. The
        embedded images need none.
      tolerate_bad_images: how many training images may be unreadable; each is replaced by its
        neighbour and logged. Evaluation never tolerates one.
      holdout: of a folder, the share of images that only evaluation gets.
      train_split: a split or a slice of one, as TFDS writes it: "train[:90%]". None for "train".
      eval_split: the same; None for "validation" ("val" in a folder), or "test" where there is
        none.
      image_key: of a TFDS set, the name of the image feature; None for its input.
      label_key: of a TFDS set, the name of the label feature; None for its target.

    Raises:
      MissingDatasetError: it is not on this machine; the message says how to prepare it.
      DamagedDatasetError: its files are missing, cut short or contradict one another.
      ValueError: an argument does not fit.
    """
    splits: dict[str, Any] = {"train_split": train_split, "eval_split": eval_split}
    keys = {"image_key": image_key, "label_key": label_key}
    if name in EMBEDDED:
        _refuse(name, holdout=holdout, **splits, **keys)
        return fashion_mnist_subset(image_size, name)
    reading: dict[str, Any] = {
        "data_dir": data_dir,
        "image_size": image_size,
        "num_workers": num_workers,
        "tolerate_bad_images": tolerate_bad_images,
    }
    # Only here, because they import grain.
    if name == "folder":
        from lrnet_jax.data import folder

        _refuse(name, **keys)
        return folder.open_folder(holdout=holdout, **splits, **reading)
    from lrnet_jax.data import imagenet, prepared

    _refuse(name, holdout=holdout)
    choice = prepared.Choice(train_split, eval_split, image_key, label_key)
    return imagenet.open_prepared(name, choice=choice, **reading)


def _refuse(name: str, **options: str | float | None) -> None:
    """Refuses options that a data set has no use for."""
    given = [f"{option} {value!r}" for option, value in options.items() if value]
    if given:
        raise ValueError(f"the data set {name!r} has no use for {given[0]}; leave it out")
