"""The images that the input pipelines read."""

import importlib.resources
import pathlib

from experiments.config import ConfigError
from lrnet_jax.data import open_dataset, records
from lrnet_jax.data.examples import Examples
from lrnet_jax.data.on_disk import OnDiskDataset
from lrnet_jax.data.prepared import Split

PHOTOGRAPHS = 4


def open_split(data: str | None, data_dir: str | None, folder: pathlib.Path) -> Examples:
    """The training images of a data set, or photographs of this package.

    Args:
      data: name of the data set; None for the photographs as records.
      data_dir: folder of the prepared data sets, None for that of TFDS; or of the data set
        "folder", None for the photographs as files.
      folder: where the photographs are written.

    Raises:
      ConfigError: there is no such data set, or TFDS did not prepare it.
      MissingDatasetError: it is not on this machine.
      DamagedDatasetError: its files are damaged.
    """
    if data is None:
        return write_photographs(folder)
    if data == "folder" and data_dir is None:
        data_dir = str(folder / "photographs")
        write_photograph_files(pathlib.Path(data_dir))
    # A folder of training images alone will do.
    eval_split = "train" if data == "folder" else None
    try:
        dataset = open_dataset(data, data_dir=data_dir, eval_split=eval_split)
    except ValueError as error:
        raise ConfigError(f"--data: {error}") from error
    if not isinstance(dataset, OnDiskDataset):
        raise ConfigError(f"--data={data} is held in memory: nothing to measure")
    return dataset.train


def photographs() -> dict[str, bytes]:
    """The four photographs beside this module by their names, encoded.

    They have the mean size (477 x 403) and weight (94 KB) of ImageNet's JPEGs.
    """
    files = importlib.resources.files("experiments.bench").joinpath("photographs")
    encoded = {
        file.name.removesuffix(".jpg"): file.read_bytes()
        for file in sorted(files.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".jpg")
    }
    if len(encoded) != PHOTOGRAPHS:
        raise FileNotFoundError(f"{files} must hold {PHOTOGRAPHS} photographs; install again")
    return encoded


def write_photograph_files(folder: pathlib.Path, copies: int = 64) -> None:
    """Writes the photographs as a folder of images, each some times over in a class of its own."""
    for name, encoded in photographs().items():
        (folder / name).mkdir(parents=True)
        for number in range(copies):
            (folder / name / f"{number}.jpg").write_bytes(encoded)


def write_photographs(folder: pathlib.Path, copies: int = 64) -> Split:
    """Writes the photographs to a TFRecord file, some times over."""
    from tensorflow_datasets.proto import tf_example_pb2

    encoded = list(photographs().values())
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
