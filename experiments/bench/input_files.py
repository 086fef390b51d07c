"""The images that the input pipelines read."""

import importlib.resources
import pathlib

from experiments.config import ConfigError
from lrnet_jax.data import open_dataset, records
from lrnet_jax.data.on_disk import OnDiskDataset
from lrnet_jax.data.prepared import Split

PHOTOGRAPHS = 4


def open_split(data: str | None, data_dir: str | None, folder: pathlib.Path) -> Split:
    """The training split of a prepared data set, or photographs of this package.

    Args:
      data: name of the data set; None for the photographs.
      data_dir: folder of the prepared data sets; None for that of TFDS.
      folder: where the photographs are written.

    Raises:
      ConfigError: there is no such data set, or TFDS did not prepare it.
      MissingDatasetError: it is not on this machine.
      DamagedDatasetError: its files are damaged.
    """
    if data is None:
        return write_photographs(folder)
    try:
        dataset = open_dataset(data, data_dir=data_dir)
    except ValueError as error:
        raise ConfigError(f"--data: {error}") from error
    if not isinstance(dataset, OnDiskDataset):
        raise ConfigError(f"--data={data} is held in memory: nothing to measure")
    if not isinstance(dataset.train, Split):
        raise ConfigError(f"--data={data} has no records, which the pipelines read")
    return dataset.train


def write_photographs(folder: pathlib.Path, copies: int = 64) -> Split:
    """Writes the four photographs beside this module to a TFRecord file, some times over.

    They have the mean size (477 x 403) and weight (94 KB) of ImageNet's JPEGs.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    files = importlib.resources.files("experiments.bench").joinpath("photographs")
    encoded = [
        file.read_bytes()
        for file in sorted(files.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".jpg")
    ]
    if len(encoded) != PHOTOGRAPHS:
        raise FileNotFoundError(f"{files} must hold {PHOTOGRAPHS} photographs; install again")
    path = folder / "photographs.tfrecord"
    with path.open("wb") as file:
        for number in range(copies * len(encoded)):
            label = number % len(encoded)
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(encoded[label])
            example.features.feature["label"].int64_list.value.append(label)
            file.write(records.tfrecord(example.SerializeToString()))
    return Split(
        name="photographs",
        records=records.open_records([str(path)], [copies * len(encoded)], "tfrecord"),
        image_key="image",
        label_key="label",
        num_classes=len(encoded),
    )
