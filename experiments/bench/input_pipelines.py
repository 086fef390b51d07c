"""The input pipelines that `benchmark_input` compares, over the same files.

Each makes endless batches of training images as uint8: a random-resized crop to 224 x 224 and a
flip (ours leaves the flip to the device). The others are written as their users write them.
"""

import importlib.resources
import importlib.util
import io
import pathlib
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from PIL import Image

from lrnet_jax.data import decode, records
from lrnet_jax.data.imagenet import PreparedDataset
from lrnet_jax.data.prepared import Split

SIZE = 224
PHOTOGRAPHS = 4
Pipeline = Callable[
    [Split, int, int], Generator[Any, None, None]
]  # split, batch_size, workers -> batches


def lrnet_jax(split: Split, batch_size: int, workers: int) -> Generator[Any, None, None]:
    """As `experiments.train` reads."""
    yield from dataset(split, workers).train_batches(batch_size, seed=0)


def grain_pillow(split: Split, batch_size: int, workers: int) -> Generator[Any, None, None]:
    """Grain and Pillow without further thought."""
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain reads a flag
    images = grain.MapDataset.range(len(split.records)).shuffle(seed=0).repeat()
    # By default each worker would read 500 batches ahead: it would never come to rest.
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    batches: grain.IterDataset = images.map(_Crop(split)).batch(batch_size).to_iter_dataset(ahead)
    iterator = iter(batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)))
    try:
        yield from iterator
    finally:
        iterator.close()


class _Crop:
    def __init__(self, split: Split) -> None:
        self.split = split

    def __call__(self, index: int) -> dict[str, Any]:
        example = self.split.example(index)
        with Image.open(io.BytesIO(example.encoded)) as file:
            image = file.convert("RGB")
        random = np.random.default_rng(index)
        box = decode.random_resized_box(image.width, image.height, random)
        crop = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
        if random.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return {"image": np.asarray(crop), "label": example.label}


def torchvision(split: Split, batch_size: int, workers: int) -> Generator[Any, None, None]:
    """The transforms of torchvision on Pillow images, in PyTorch's DataLoader."""
    import torch
    from torchvision.transforms import InterpolationMode, v2

    torch.set_num_threads(1)
    transform = v2.Compose([
        v2.RandomResizedCrop(SIZE, interpolation=InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
    ])  # fmt: skip

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(split.records)

        def __getitem__(self, index: int) -> Any:
            example = split.example(index)
            with Image.open(io.BytesIO(example.encoded)) as image:
                return transform(image.convert("RGB")), example.label

    loader = torch.utils.data.DataLoader(
        Images(), batch_size, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0, multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
    while True:
        yield from loader


def tf_data(split: Split, batch_size: int, workers: int) -> Generator[Any, None, None]:
    """tf.data decoding only the crop; its usual resampling, which does not widen the filter."""
    yield from _tf_data(split, batch_size, workers, antialias=False)


def tf_data_antialias(split: Split, batch_size: int, workers: int) -> Generator[Any, None, None]:
    """The same with the resampling that all the others do."""
    yield from _tf_data(split, batch_size, workers, antialias=True)


def _tf_data(
    split: Split, batch_size: int, workers: int, *, antialias: bool
) -> Generator[Any, None, None]:
    import tensorflow as tf

    def load(record: Any) -> Any:
        features = tf.io.parse_single_example(
            record,
            {
                split.image_key: tf.io.FixedLenFeature([], tf.string),
                split.label_key: tf.io.FixedLenFeature([], tf.int64),
            },
        )
        encoded = features[split.image_key]
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded),
            bounding_boxes=tf.zeros([1, 0, 4]),
            use_image_if_no_bounding_boxes=True,
            min_object_covered=0.0,
            area_range=decode.AREA,
            aspect_ratio_range=decode.RATIO,
            max_attempts=decode.TRIES,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        crop = tf.image.decode_and_crop_jpeg(
            encoded, window, channels=3, dct_method="INTEGER_ACCURATE"
        )
        crop = tf.image.resize(crop, (SIZE, SIZE), "bicubic", antialias=antialias)
        crop = tf.cast(tf.round(tf.clip_by_value(crop, 0.0, 255.0)), tf.uint8)
        return tf.image.random_flip_left_right(crop), features[split.label_key]

    options = tf.data.Options()
    options.threading.private_threadpool_size = max(1, workers)
    data = tf.data.TFRecordDataset(list(split.records.paths)).repeat().with_options(options)
    data = data.map(load, num_parallel_calls=max(1, workers)).batch(batch_size).prefetch(2)
    yield from data.as_numpy_iterator()


PIPELINES: dict[str, Pipeline] = {
    "lrnet_jax": lrnet_jax,
    "grain_pillow": grain_pillow,
    "torchvision": torchvision,
    "tf_data": tf_data,
    "tf_data_antialias": tf_data_antialias,
}
NEEDS = {"torchvision": "torchvision", "tf_data": "tensorflow", "tf_data_antialias": "tensorflow"}


def left_out(name: str, split: Split) -> str | None:
    """Why a pipeline cannot run on these files here, or None."""
    needs = NEEDS.get(name)
    if needs is not None and importlib.util.find_spec(needs) is None:
        return f"{needs} is not installed"
    if needs == "tensorflow" and not all("tfrecord" in path for path in split.records.paths):
        return "TensorFlow reads TFRecord files only"
    return None


def dataset(split: Split, workers: int) -> PreparedDataset:
    """A split as a data set for training and evaluation."""
    return PreparedDataset(
        name="benchmark",
        train=split,
        evaluation=split,
        class_names=None,
        image_size=SIZE,
        num_workers=workers,
        tolerate_bad_images=0,
    )


def photographs(folder: pathlib.Path, copies: int = 64) -> Split:
    """Writes a TFRecord file of the four photographs beside this module, some times over.

    They have the mean size (477 x 403) and weight (94 KB) of ImageNet's JPEGs.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    files = importlib.resources.files("experiments").joinpath("photographs")
    encoded = [
        file.read_bytes()
        for file in sorted(files.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".jpg")
    ]
    if len(encoded) != PHOTOGRAPHS:
        raise FileNotFoundError(f"{files} must hold {PHOTOGRAPHS} photographs; install anew")
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
