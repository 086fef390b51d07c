"""Finds a data set that TFDS has prepared and checks that it is complete.

Reads dataset_info.json, features.json and the shards; imports tensorflow_datasets but never
TensorFlow.
"""

import dataclasses
import difflib
import functools
import os
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lrnet_jax.data import records
from lrnet_jax.data.decode import decode
from lrnet_jax.data.examples import BadImageError, Example, Examples, MissingDatasetError
from lrnet_jax.data.in_memory import EMBEDDED
from lrnet_jax.data.records import DamagedDatasetError, FileFormat, Records
from lrnet_jax.data.splits import SplitSize, select

if TYPE_CHECKING:
    import tensorflow_datasets as tfds
    from PIL import Image

VERSION = re.compile(r"\d+\.\d+\.\d+")
EVALUATION_SPLITS = ("validation", "test")
OWN_NAMES = (*EMBEDDED, "folder")  # of the sets that TFDS does not prepare


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split of a prepared data set. Can be sent to other processes.

    Attributes:
      name: of the split.
      records: its serialised examples.
      image_key: name of the image feature.
      label_key: name of the label feature.
      num_classes: labels are in [0, num_classes).
    """

    name: str
    records: Records
    image_key: str
    label_key: str
    num_classes: int

    def __len__(self) -> int:
        return len(self.records)

    def example(self, index: int) -> Example:
        """Reads example `index`.

        Raises:
          BadImageError: the record is damaged or not what the features say.
        """
        file_name = ""
        try:
            features = _parse(self.records[index])
            if "file_name" in features:
                (file_name,) = (name.decode() for name in features["file_name"].bytes_list.value)
            (encoded,) = features[self.image_key].bytes_list.value
            (label,) = features[self.label_key].int64_list.value
            if not 0 <= label < self.num_classes:
                raise ValueError(f"label {label} is not in [0, {self.num_classes})")
        except Exception as error:  # each reader has errors of its own
            raise BadImageError(f"{self.describe(index, file_name)}: {error}") from error
        return Example(encoded, label, file_name)

    def decode(self, index: int, example: Example) -> "Image.Image":
        """Decodes example `index`, as read by `example`, to RGB.

        Raises:
          BadImageError: Pillow cannot.
        """
        try:
            return decode(example.encoded)
        except Exception as error:  # Pillow's plugins raise anything from OSError to SyntaxError
            raise BadImageError(f"{self.describe(index, example.file_name)}: {error}") from error

    def describe(self, index: int, file_name: str = "") -> str:
        """Names an example: split, index, file name, shard."""
        shard, position = self.records.locate(index)
        path = self.records.paths[shard]
        name = f" ({file_name})" if file_name else ""
        return f"image {index}{name} of split {self.name}, record {position} of {path}"


class Prepared(NamedTuple):
    """A prepared data set, checked."""

    train: Examples
    evaluation: Examples
    class_names: tuple[str, ...] | None


def default_data_dir() -> str:
    """Where TFDS looks: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return os.environ.get("TFDS_DATA_DIR") or str(pathlib.Path.home() / "tensorflow_datasets")


def find(name: str, data_dir: str | None, how_to_prepare: str) -> pathlib.Path:
    """The folder of a prepared data set.

    Args:
      name: as TFDS writes it: "name", "name/config", with ":1.2.3" for a version other than the
        newest.
      data_dir: where to look; None for `default_data_dir`.
      how_to_prepare: ends the message where it is not there.

    Raises:
      MissingDatasetError: there is none.
    """
    if name.startswith(("/", ".", "~")):
        raise MissingDatasetError(
            f"no data set is named {name!r}; a folder of images is the data set 'folder', with its "
            "path as data_dir"
        )
    root = pathlib.Path(data_dir or default_data_dir()).expanduser()
    plain, _, version = name.partition(":")
    folder = root / plain
    found = {
        path.parent.name: path.parent
        for path in folder.glob("*/dataset_info.json")
        if VERSION.fullmatch(path.parent.name)
    }
    if not version and found:
        return found[max(found, key=lambda text: tuple(map(int, text.split("."))))]
    if version in found:
        return found[version]
    message = f"data set {name!r} is not prepared: looked for {folder}/{version or '<version>'}"
    message += "/dataset_info.json" + (f", found versions {sorted(found)}" if found else "")
    configs = sorted(
        {str(p.parents[1].relative_to(root)) for p in folder.glob("*/*/dataset_info.json")}
    )
    if configs and not found:
        message += f"; it has configurations, name one: {', '.join(configs)}"
    if not (found or configs) and (near := _nearest(plain, root)):
        raise MissingDatasetError(f"no data set is named {plain!r}; did you mean {near}?")
    raise MissingDatasetError(f"{message}\n{how_to_prepare}")


def _nearest(name: str, root: pathlib.Path) -> str | None:
    """The name that a name may be a slip of; None if it is right, or like no other."""
    import tensorflow_datasets as tfds

    known = {*OWN_NAMES, *tfds.list_builders(with_community_datasets=False)}
    known |= {path.parents[1].name for path in root.glob("*/*/dataset_info.json")}
    if name.partition("/")[0] in known:
        return None
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), None)


class Choice(NamedTuple):
    """Which splits and features of a prepared data set to read; None for the usual ones.

    Attributes:
      train: a slice of TFDS; None for "train".
      evaluation: a slice of TFDS; None for "validation", or "test" where there is none.
      image_key: name of the image feature; None for the only one, or the one that the data set
        names as its input.
      label_key: name of the label feature; None for the only one, or the one that the data set
        names as its target.
    """

    train: str | None = None
    evaluation: str | None = None
    image_key: str | None = None
    label_key: str | None = None


def load(
    folder: pathlib.Path, expected: Mapping[str, int] | None = None, choice: Choice | None = None
) -> Prepared:
    """Opens a prepared data set, checking everything that can be checked without reading images.

    Args:
      folder: the one with dataset_info.json.
      expected: number of images of each split; None for those in dataset_info.json.
      choice: the splits and features to read.

    Raises:
      DamagedDatasetError: files are missing, cut short or contradict one another.
      ValueError: it is not one of labelled images, or has not what is chosen.
    """
    choice = choice or Choice()
    info = _read_info(folder)
    image_key, label_key = _keys(folder, info, choice)
    label = info.features[label_key]
    names = label.names

    @functools.cache
    def split(name: str) -> Split:
        return Split(
            name=name,
            records=_open_split(folder, info, name, (expected or {}).get(name)),
            image_key=image_key,
            label_key=label_key,
            num_classes=label.num_classes,
        )

    sizes = {
        name: SplitSize(entry.num_examples, entry.shard_lengths)
        for name, entry in info.splits.items()
    }
    usual = next((name for name in EVALUATION_SPLITS if name in sizes), None)
    train, evaluation = choice.train or "train", choice.evaluation or usual
    if evaluation is None or (choice.train is None and train not in sizes):
        raise DamagedDatasetError(
            f"{folder} has the splits {sorted(sizes)}; train and one of "
            f"{', '.join(EVALUATION_SPLITS)} are needed, or name slices as train_split and "
            "eval_split"
        )
    return Prepared(
        train=select(train, sizes, split),
        evaluation=select(evaluation, sizes, split),
        # TFDS invents the names "0", "1", .. where a data set has none.
        class_names=tuple(names) if names and names != _numbers(label.num_classes) else None,
    )


def _read_info(folder: pathlib.Path) -> "tfds.core.DatasetInfo":
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder).info
    except Exception as error:  # of several kinds, few of which name a file
        raise DamagedDatasetError(
            f"{folder}: dataset_info.json or features.json cannot be read: {error}; copy them again"
        ) from error


def _open_split(
    folder: pathlib.Path, info: "tfds.core.DatasetInfo", name: str, expected: int | None
) -> Records:
    """The records of a split, after a check of their number."""
    file_format = info.file_format.value if info.file_format else "tfrecord"
    if file_format not in ("array_record", "tfrecord"):
        raise ValueError(
            f"{folder} is in {file_format} format; prepare it with file_format=array_record"
        )
    entry = info.splits[name]
    if expected is not None and entry.num_examples != expected:
        raise DamagedDatasetError(
            f"{folder}: split {name} has {entry.num_examples} images, it must have "
            f"{expected}; prepare it again from complete files"
        )
    return records.open_records(
        [os.fspath(path) for path in entry.filepaths],
        [int(length) for length in entry.shard_lengths],
        cast(FileFormat, file_format),
    )


def _numbers(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def _keys(folder: pathlib.Path, info: "tfds.core.DatasetInfo", choice: Choice) -> tuple[str, str]:
    """Names of the image and the label."""
    import tensorflow_datasets as tfds

    usual = info.supervised_keys or ()
    chosen = []
    for kind, given, option in (
        ("Image", choice.image_key, "image_key"),
        ("ClassLabel", choice.label_key, "label_key"),
    ):
        feature_type = getattr(tfds.features, kind)
        keys = sorted(k for k, feature in info.features.items() if type(feature) is feature_type)
        if given is not None:
            fitting = [given] if given in keys else []
        else:
            fitting = keys if len(keys) == 1 else [key for key in keys if key in usual]
        if len(fitting) != 1:
            problem = f"has no {kind} {given!r}" if given else f"has {len(keys)} of type {kind}"
            raise ValueError(
                f"{folder} {problem}; {option} must be one of: {', '.join(keys) or 'none here'}; "
                f"its features are {', '.join(sorted(info.features))}"
            )
        chosen += fitting
    return chosen[0], chosen[1]


def _parse(record: bytes) -> Mapping[str, Any]:
    from tensorflow_datasets.proto import tf_example_pb2

    return cast(Mapping[str, Any], tf_example_pb2.Example.FromString(record).features.feature)
