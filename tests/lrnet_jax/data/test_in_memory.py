"""The embedded data, and the contract of `Dataset` on data held in memory."""

import hashlib
import itertools

import numpy as np
import pytest

from lrnet_jax.data import InMemoryDataset, open_dataset


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def numbered(num_train=7, num_eval=5, channels=1):
    """A data set in which a pixel tells the example: training 1, 2, .. and evaluation 101, .."""
    train = np.arange(1, num_train + 1, dtype=np.uint8)
    evaluation = np.arange(101, 101 + num_eval, dtype=np.uint8)
    images = [np.tile(v[:, None, None, None], (1, 2, 2, channels)) for v in (train, evaluation)]
    return InMemoryDataset(
        name="numbered",
        train_images=images[0],
        train_labels=train % 3,
        eval_images=images[1],
        eval_labels=evaluation % 3,
        num_classes=3,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )


def test_embedded_images_are_the_expected_ones():
    """Digests of the arrays selected from the original files, taken before they became PNGs."""
    data = open_dataset("fashion_mnist_subset")
    assert data.train_images.shape == (10_000, 28, 28, 1)
    assert data.eval_images.shape == (2_000, 28, 28, 1)
    digests = [
        hashlib.sha256(images.tobytes()).hexdigest()
        for images in (data.train_images, data.eval_images)
    ]
    assert digests == [
        "d4ac230f4a15a0e49cdaf79d4dbe30bbe0bd8e4c81a6b4bd7f8f5050899d3824",
        "a2cd7017deb1e8b2a2960340f89a695d14bac2a448a91ce1fefc68c807f3539d",
    ]
    np.testing.assert_array_equal(data.train_labels, np.arange(10_000) // 1_000)
    np.testing.assert_array_equal(data.eval_labels, np.arange(2_000) // 200)


def test_embedded_description():
    data = open_dataset("fashion_mnist_subset")
    assert (data.name, data.num_classes, data.image_size) == ("fashion_mnist_subset", 10, 28)
    assert (data.num_train, data.num_eval) == (10_000, 2_000)
    assert data.class_names is not None
    assert (len(data.class_names), data.class_names[9]) == (10, "ankle boot")
    pixels = data.train_images.astype(np.float64)
    np.testing.assert_allclose(data.mean, [pixels.mean()] * 3)
    np.testing.assert_allclose(data.std, [pixels.std()] * 3)


def test_embedded_parts():
    """Five classes; a tenth of the training images of the five others. All from one whole."""
    whole = open_dataset("fashion_mnist_subset")
    first = open_dataset("fashion_mnist_first_half")
    tenth = open_dataset("fashion_mnist_second_half_tenth")
    assert first.class_names + tenth.class_names == whole.class_names
    assert (first.mean, first.std) == (tenth.mean, tenth.std) == (whole.mean, whole.std)
    np.testing.assert_array_equal(first.train_images, whole.train_images[:5000])
    np.testing.assert_array_equal(first.train_labels, np.arange(5000) // 1000)
    rows = np.concatenate([np.arange(start, start + 100) for start in range(5000, 10000, 1000)])
    np.testing.assert_array_equal(tenth.train_images, whole.train_images[rows])
    np.testing.assert_array_equal(tenth.train_labels, np.arange(500) // 100)
    np.testing.assert_array_equal(tenth.eval_images, whole.eval_images[1000:])
    np.testing.assert_array_equal(tenth.eval_labels, np.arange(1000) // 200)


def test_embedded_batches():
    data = open_dataset("fashion_mnist_subset")
    (batch,) = take(data.train_batches(16, seed=0), 1)
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
        "image": ((16, 28, 28, 3), "uint8"),
        "label": ((16,), "int32"),
        "index": ((16,), "int32"),
    }
    assert (batch["image"] == batch["image"][..., :1]).all()
    assert len(set(batch["label"].tolist())) > 4, "not shuffled"


def test_embedded_other_size():
    data = open_dataset("fashion_mnist_subset", image_size=14)
    assert data.image_size == 14
    halves = open_dataset("fashion_mnist_subset").eval_images.reshape(-1, 14, 2, 14, 2)
    error = data.eval_images[..., 0] - halves.astype(float).mean((2, 4))
    assert np.abs(error).mean() < 8  # bicubic against a box average


def test_every_image_once_per_epoch():
    batches = take(numbered().train_batches(2, seed=3), 7)  # two epochs of seven images
    seen = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])
    np.testing.assert_array_equal(np.sort(seen.reshape(2, 7)), [np.arange(1, 8)] * 2)
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels, seen % 3)


def test_resume_is_exact():
    data = numbered()
    whole = take(data.train_batches(4, seed=3), 9)
    for start in (1, 5):
        resumed = take(data.train_batches(4, seed=3, start_step=start), 3)
        for got, want in zip(resumed, whole[start:], strict=False):
            for name in want:
                np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_processes_share_each_batch(kind):
    data = numbered()

    def batches(**process):
        if kind == "train":
            return take(data.train_batches(4, seed=0, **process), 5)
        return list(data.eval_batches(4, **process))

    whole = batches()
    parts = [batches(process_index=index, process_count=2) for index in range(2)]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for want, *got in zip(whole, *parts, strict=True):
        for name in want:
            np.testing.assert_array_equal(np.concatenate([g[name] for g in got]), want[name])


def test_index_is_the_place_in_the_global_batch():
    (batch,) = take(numbered().train_batches(6, seed=0, process_index=1, process_count=3), 1)
    assert batch["index"].tolist() == [2, 3]


def test_evaluation_sees_every_image_once():
    batches = list(numbered().eval_batches(2))
    assert len(batches) == 3
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert mask.tolist() == [True] * 5 + [False]
    images = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])
    assert images.tolist() == [101, 102, 103, 104, 105, 0]
    index = np.concatenate([batch["index"] for batch in batches])
    assert index.tolist() == list(range(6))
    labels = np.concatenate([batch["label"] for batch in batches])
    assert labels.tolist() == [2, 0, 1, 2, 0, 0]


def test_batches_are_fresh_arrays():
    data = numbered(channels=3)
    batch = next(iter(data.eval_batches(2)))
    batch["image"][:] = 0
    assert data.eval_images.min() == 101


def test_errors_come_at_the_call():
    data = numbered()
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        data.train_batches(0, seed=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        data.eval_batches(0)
    with pytest.raises(ValueError, match="seed must be"):
        data.train_batches(1, seed=-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": np.zeros((7, 2, 2), np.uint8)}, "train_images must be uint8"),
        ({"train_images": np.zeros((7, 2, 2, 1))}, "train_images must be uint8"),
        ({"eval_images": np.zeros((5, 3, 3, 1), np.uint8)}, "eval_images must be square"),
        ({"train_labels": np.zeros(6, int)}, r"train_labels must be \(7,\) integers"),
        ({"eval_labels": np.full(5, 3)}, r"eval_labels must be in \[0, 3\), got 3 to 3"),
        (
            {"eval_images": np.zeros((0, 2, 2, 1), np.uint8), "eval_labels": np.zeros(0, int)},
            "eval_images must not be empty",
        ),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    good = numbered()
    arguments = {name: getattr(good, name) for name in good.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        InMemoryDataset(**(arguments | change))


def test_unknown_image_size():
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        open_dataset("fashion_mnist_subset", image_size=0)
