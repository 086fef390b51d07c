"""Whether configurations, checkpoints and images fit together."""

import numpy as np
import pytest

from experiments.config import ConfigError
from experiments.recipes import RECIPES
from experiments.run.check_data import (
    check_data,
    check_same_images,
    describe_images,
    unusual_size,
)
from experiments.run.inputs import eval_batches
from experiments.run.overrides import override
from lrnet_jax.data import InMemoryDataset, open_dataset
from lrnet_jax.training import processes

QUICKSTART = RECIPES["quickstart"]


def dataset(count=8, size=8, names=("a", "b"), digest=None):
    images = np.zeros((count, size, size, 3), np.uint8)
    labels = np.zeros(count, int)
    scale = (1.0, 1.0, 1.0)
    return InMemoryDataset(
        "given", images, labels, images, labels, len(names), scale, scale, names, digest
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            dataset(63),
            "train.batch_size 64 is larger than the data set, which has 63 training images; use at "
            "most --config.train.batch_size=63",
        ),
        (dataset(64, names=("a",)), "given has one class only, and a network learns to tell"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(data, message):
    with pytest.raises(ConfigError) as raised:
        check_data(QUICKSTART, data)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_all_processes_have_the_same_images(monkeypatch):
    first = describe_images(dataset(64, digest="one"))
    monkeypatch.setattr(processes, "broadcast", lambda own: first)
    check_data(QUICKSTART, dataset(64, size=28, digest="one"))
    with pytest.raises(ConfigError, match="this process sees other images than process 0: 65"):
        check_data(QUICKSTART, dataset(65, size=28, digest="two"))


def test_a_batch_may_be_the_whole_data_set(capsys):
    check_data(QUICKSTART, dataset(64, size=28))
    assert capsys.readouterr().err == ""


def test_an_unusual_size_is_told(capsys):
    """lrnet_small at 224 has 64 times the pixels."""
    check_data(QUICKSTART, dataset(64, size=224))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "warning: images of 224 x 224 are large for lrnet_small: its last map is"
    )
    assert "56 x 56, and a step takes about 64 times as long as at 28; use --config.data.im" in line


@pytest.mark.parametrize("name", [n for n in RECIPES if not n.startswith("table")])
def test_no_recipe_has_an_unusual_size(name):
    recipe = RECIPES[name]
    size = recipe.data.image_size or (28 if "fashion" in recipe.data.name else 224)
    assert unusual_size(recipe, size) is None


@pytest.mark.parametrize(
    ("network", "size", "part"),
    [
        ("lrnet_small", 64, None),
        ("lrnet_small", 65, "large for lrnet_small: its last map is 17 x 17"),
        ("resnet50", 448, None),
        ("resnet50", 449, "large for resnet50: its last map is 15 x 15"),
        ("resnet50", 96, None),
        ("resnet50", 32, "small for resnet50: its last map is 1 x 1; use --config.data.image_size"),
    ],
)
def test_which_sizes_are_unusual(network, size, part):
    found = unusual_size(override(RECIPES["lrnet50"], "network", network), size)
    assert found is None if part is None else part in found


def test_a_run_is_not_resumed_with_other_images():
    before = dataset(8, digest="one")
    metadata = {"step": 12, "images": describe_images(before)}
    check_same_images(metadata, dataset(8, digest="one"))
    check_same_images({"step": 12}, before)  # of a checkpoint that does not say
    for other in (dataset(8, digest="two"), dataset(9, digest="one")):
        with pytest.raises(ConfigError, match="the images have changed since step 12, from 8"):
            check_same_images(metadata, other)


def test_evaluation_takes_no_larger_batch_than_the_split():
    """On four devices."""
    (batch,) = eval_batches(dataset(9), 500)
    assert batch["mask"].tolist() == [True] * 9 + [False] * 3
    assert len(next(eval_batches(open_dataset("fashion_mnist_subset"), 500))["mask"]) == 500
