"""The input pipelines that `benchmark_input` compares, over the same files.

Each yields batches of training images without end: uint8, a random-resized crop to 224 x 224 and a
flip. The pipeline of this package leaves the flip to the device. The others are written as their
users write them.
"""

import importlib.util
import io
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from PIL import Image

from lrnet_jax.data import decode
from lrnet_jax.data.examples import Examples
from lrnet_jax.data.on_disk import OnDiskDataset
from lrnet_jax.data.prepared import Split

SIZE = 224
# (split, batch_size, workers) -> batches
Pipeline = Callable[[Examples, int, int], Generator[Any, None, None]]


def lrnet_jax(split: Examples, batch_size: int, workers: int) -> Generator[Any, None, None]:
    """Reads as `experiments.train` does."""
    yield from _dataset(split, workers).train_batches(batch_size, seed=0)


def _dataset(split: Examples, workers: int) -> OnDiskDataset:
    """A split as a data set."""
    return OnDiskDataset(
        name="benchmark",
        train=split,
        evaluation=split,
        class_names=None,
        image_size=SIZE,
        num_workers=workers,
        tolerate_bad_images=0,
    )


def grain_pillow(split: Examples, batch_size: int, workers: int) -> Generator[Any, None, None]:
    """Grain and Pillow in their plainest form."""
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain reads a flag
    images = grain.MapDataset.range(len(split)).shuffle(seed=0).repeat()
    # By default each worker reads 500 batches ahead and would not become idle.
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    batches: grain.IterDataset = images.map(_Crop(split)).batch(batch_size).to_iter_dataset(ahead)
    iterator = iter(batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)))
    try:
        yield from iterator
    finally:
        iterator.close()


class _Crop:
    def __init__(self, split: Examples) -> None:
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


def torchvision(split: Examples, batch_size: int, workers: int) -> Generator[Any, None, None]:
    """Torchvision's transforms on Pillow images in PyTorch's DataLoader."""
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
            return len(split)

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


def tf_data(split: Examples, batch_size: int, workers: int) -> Generator[Any, None, None]:
    """tf.data, which decodes only the crop; its usual resampling does not widen the filter."""
    yield from _tf_data(split, batch_size, workers, antialias=False)


def tf_data_antialias(split: Examples, batch_size: int, workers: int) -> Generator[Any, None, None]:
    """tf.data with the resampling of all other pipelines."""
    yield from _tf_data(split, batch_size, workers, antialias=True)


def _tf_data(
    split: Examples, batch_size: int, workers: int, *, antialias: bool
) -> Generator[Any, None, None]:
    import tensorflow as tf

    assert isinstance(split, Split)  # `left_out`

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


def left_out(name: str, split: Examples) -> str | None:
    """Why a pipeline cannot run on these files here, or None."""
    needs = NEEDS.get(name)
    if needs is not None and importlib.util.find_spec(needs) is None:
        return f"{needs} is not installed"
    if needs == "tensorflow" and not (
        isinstance(split, Split) and all("tfrecord" in path for path in split.records.paths)
    ):
        return "this one reads TFRecord files only"
    return None
