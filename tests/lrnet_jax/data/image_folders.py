"""Folders of images, and the TFDS set that TFDS itself makes of them."""

import io
import pathlib

import numpy as np
from PIL import Image

CLASSES = ("cat", "cup", "rocket")


def encode(array, format="PNG", **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **options)
    return buffer.getvalue()


def write(folder, files):
    """Writes a dict of path to bytes."""
    for path, data in files.items():
        file = pathlib.Path(folder, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def noise(seed, size=(12, 10)):
    """A PNG of noise, 12 x 10 unless told otherwise."""
    return encode(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def three_classes(per_class=5, prefix=""):
    """Path to bytes; names are unlike each other in all classes."""
    return {
        f"{prefix}{name}/{name}_{number}.png": noise((number, *name.encode()))
        for name in CLASSES
        for number in range(per_class)
    }


def build_tfds(folder, splits, features, supervised_keys=None):
    """Lets TFDS itself write a data set "theirs"; without TensorFlow.

    Args:
      folder: becomes the data_dir.
      splits: name of the split to {key: example}.
      features: name to feature.
      supervised_keys: names of input and target.
    """
    import tensorflow_datasets as tfds

    class Theirs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "theirs"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            described = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(
                builder=self, features=described, supervised_keys=supervised_keys
            )

        def _split_generators(self, manager):
            return {name: self._generate_examples(split) for name, split in splits.items()}

        def _generate_examples(self, examples):
            yield from examples.items()

    config = tfds.download.DownloadConfig(num_shards=2)
    builder = Theirs(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_config=config)


def build_classes(folder, splits):
    """`build_tfds` of labelled images: each split is a dict of path (CLASS/name) to bytes."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=CLASSES),
        "file_name": tfds.features.Text(),
    }
    examples = {
        split: {
            name: {"image": io.BytesIO(data), "label": label, "file_name": name}
            for (label, name), data in ((path.split("/"), data) for path, data in files.items())
        }
        for split, files in splits.items()
    }
    build_tfds(folder, examples, features)
