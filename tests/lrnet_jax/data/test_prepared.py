"""Where a prepared data set is looked for, and the checks when it is opened."""

import dataclasses
import io
import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lrnet_jax.data import (
    BadImageError,
    DamagedDatasetError,
    MissingDatasetError,
    imagenet,
    open_dataset,
)
from lrnet_jax.data.prepared import Choice
from tests.lrnet_jax.data import image_folders, miniature
from tests.lrnet_jax.data.miniature import open_miniature
from tests.lrnet_jax.data.streams import take


def test_not_prepared_says_what_to_do(tmp_path):
    with pytest.raises(MissingDatasetError) as error:
        open_dataset("imagenet2012", data_dir=str(tmp_path))
    message = str(error.value)
    for part in (
        f"looked for {tmp_path}/imagenet2012/<version>/dataset_info.json",
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",
        f"{sys.executable} -m pip install -e '.[prepare]'",
        f"{sys.executable} -m experiments.prepare_imagenet --manual_dir=",
    ):
        assert part in message
    assert isinstance(error.value, FileNotFoundError)


def test_where_it_looks(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "by_variable"))
    with pytest.raises(MissingDatasetError, match=f"{tmp_path}/by_variable/imagenet2012"):
        open_dataset("imagenet2012")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(MissingDatasetError, match=f"{tmp_path}/home/tensorflow_datasets/imagen"):
        open_dataset("imagenet2012")


def test_unknown_names_are_told_apart(copy):
    root = copy("tfrecord").parents[1]
    with pytest.raises(MissingDatasetError, match=r"found versions \['5.1.0'\]"):
        open_dataset("imagenet2012:5.0.0", data_dir=str(root))
    with pytest.raises(
        MissingDatasetError, match=r"(?s)'fashion_mnist' is not .*fashion_mnist_subset"
    ):
        open_dataset("fashion_mnist", data_dir=str(root))
    with pytest.raises(MissingDatasetError, match="is the data set 'folder', with its path as"):
        open_dataset(str(root / "sets"))
    (root / "sets").mkdir()
    (root / "imagenet2012").rename(root / "sets" / "small")
    with pytest.raises(MissingDatasetError, match="configurations, name one: sets/small"):
        open_dataset("sets", data_dir=str(root))
    assert open_dataset("sets/small:5.1.0", data_dir=str(root)).num_train == 18


def test_the_newest_version_is_taken(copy):
    folder = copy("tfrecord")
    shutil.copytree(folder, folder.with_name("5.0.0"))
    (folder / "dataset_info.json").rename(folder / "elsewhere")
    with pytest.raises(DamagedDatasetError, match="must have 1281167"):
        open_dataset("imagenet2012", data_dir=str(folder.parents[1]))
    assert imagenet.prepared.find("imagenet2012", str(folder.parents[1]), "").name == "5.0.0"
    (folder / "elsewhere").rename(folder / "dataset_info.json")
    assert imagenet.prepared.find("imagenet2012", str(folder.parents[1]), "").name == "5.1.0"


def test_counts_of_imagenet_are_checked(prepared_dir):
    with pytest.raises(
        DamagedDatasetError, match="split train has 18 images, it must have 1281167"
    ):
        open_dataset("imagenet2012", data_dir=str(prepared_dir / "array_record"))


@pytest.mark.parametrize("file_format", miniature.FORMATS)
def test_shards_are_checked(copy, file_format):
    folder = copy(file_format)
    shard = folder / f"imagenet2012-train.{file_format}-00001-of-00002"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    with pytest.raises(DamagedDatasetError, match=str(shard)):
        open_miniature(folder.parents[1])
    shard.unlink()
    with pytest.raises(DamagedDatasetError, match=f"1 of 2 shards are missing, the first {shard}"):
        open_miniature(folder.parents[1])


def rewrite_info(folder, change):
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def test_shard_lengths_are_checked(copy):
    folder = copy("array_record")
    rewrite_info(folder, lambda info: info["splits"][0].update(shardLengths=["8", "10"]))
    with pytest.raises(DamagedDatasetError, match=r"has 9 records, dataset_info\.json says 8"):
        open_miniature(folder.parents[1])


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{", None])
def test_unreadable_descriptions(copy, name, content):
    folder = copy("array_record")
    if content is None:
        (folder / "features.json").unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(DamagedDatasetError, match=rf"{folder}: dataset_info\.json or features"):
        open_miniature(folder.parents[1])


def test_a_data_set_without_class_names(copy):
    folder = copy("array_record")
    (folder / "label.labels.txt").unlink()
    assert open_miniature(folder.parents[1]).class_names is None


def test_both_splits_are_needed(copy):
    folder = copy("array_record")
    rewrite_info(folder, lambda info: info["splits"].pop(1))
    with pytest.raises(DamagedDatasetError, match=r"splits \['train'\]; train and one of valid"):
        open_miniature(folder.parents[1])


def test_other_formats_are_refused(copy):
    folder = copy("array_record")
    rewrite_info(folder, lambda info: info.update(fileFormat="riegeli"))
    with pytest.raises(ValueError, match="in riegeli format; prepare it with file_format=array_"):
        open_miniature(folder.parents[1])


def test_a_label_out_of_range_is_refused(prepared_dir):
    dataset = open_miniature(prepared_dir / "tfrecord")
    narrow = dataclasses.replace(dataset.train, num_classes=3)
    with pytest.raises(BadImageError, match=r"label \d+ is not in \[0, 3\)"):
        [narrow.example(i) for i in range(18)]


def test_any_labelled_images_will_do(copy):
    """Other names of the features, and a test split instead of a validation split."""
    folder = copy("tfrecord")
    rewrite_info(
        folder, lambda info: (info.update(name="other"), info["splits"][1].update(name="test"))
    )
    for path in folder.glob("imagenet2012-*"):
        name = path.name.replace("imagenet2012", "other").replace("validation", "test")
        path.rename(folder / name)
    folder.parent.rename(folder.parents[1] / "other")
    dataset = open_dataset("other", data_dir=str(folder.parents[1]), image_size=8, num_workers=0)
    assert (dataset.num_train, dataset.num_eval) == (18, 10)
    assert len(list(dataset.eval_batches(5))) == 2


def test_no_label_no_data_set(copy):
    folder = copy("tfrecord")
    features = tfds.features.FeaturesDict({"image": tfds.features.Image()})
    (folder / "features.json").write_text(json.dumps(features.to_json()))
    with pytest.raises(
        ValueError, match="has 0 of type ClassLabel; label_key must be one of: none here"
    ):
        open_miniature(folder.parents[1])


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Two images and two labels in each example, as in oxford_iiit_pet: {usual: data_dir}."""
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "mask": tfds.features.Image(shape=(None, None, 1)),
        "label": tfds.features.ClassLabel(names=["Abyssinian", "Bengal", "beagle"]),
        "species": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    light = image_folders.encode(np.full((8, 8, 3), 250, np.uint8))
    dark = image_folders.encode(np.full((8, 8), 5, np.uint8))

    def examples():
        for i in range(10):
            images = {"image": io.BytesIO(light), "mask": io.BytesIO(dark)}
            yield i, images | {"label": i % 3, "species": i % 2}

    folders = {}
    for keys in (None, ("image", "label")):
        folders[keys] = str(tmp_path_factory.mktemp("pets"))
        splits = {"train": dict(examples()), "test": dict(examples())}
        image_folders.build_tfds(folders[keys], splits, features, supervised_keys=keys)
    return folders


def open_pets(data_dir, **options):
    return open_dataset("theirs", data_dir=data_dir, image_size=4, num_workers=0, **options)


def test_features_are_those_that_tfds_calls_input_and_target(pets):
    dataset = open_pets(pets["image", "label"])
    assert dataset.class_names == ("Abyssinian", "Bengal", "beagle")
    (batch,) = dataset.eval_batches(10)
    assert batch["image"].min() == 250
    assert sorted(batch["label"]) == sorted(i % 3 for i in range(10))


@pytest.mark.parametrize("usual", [None, ("image", "label")])
def test_other_features_are_chosen(pets, usual):
    dataset = open_pets(pets[usual], image_key="mask", label_key="species")
    assert dataset.class_names == ("cat", "dog")
    (batch,) = dataset.eval_batches(10)
    assert batch["image"].max() == 5
    assert sorted(batch["label"]) == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has 2 of type Image; image_key must be one of: image, mask; its features are image,"),
        ({"image_key": "mask"}, "has 2 of type ClassLabel; label_key must be one of: label, spec"),
        (
            {"image_key": "mask", "label_key": "breed"},
            "has no ClassLabel 'breed'; label_key must be one of: label, species; its features are",
        ),
        ({"image_key": "label"}, "has no Image 'label'; image_key must be one of: image, mask;"),
    ],
)
def test_features_that_do_not_fit_are_refused_with_those_that_do(pets, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        open_pets(pets[None], **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file_format", miniature.FORMATS)
@pytest.mark.parametrize(
    "spec",
    ["train[:70%]", "train[50%:]", "train[-5:]", "train[3:7]+train[12:]", "train+validation"],
)
def test_slices_are_those_of_tfds(prepared_dir, file_format, spec):
    """File names in the order in which TFDS reads the slice."""
    folder = prepared_dir / file_format
    builder = tfds.builder_from_directory(folder / "imagenet2012" / "5.1.0")
    choice = Choice(train=spec, evaluation="train[7:]")
    split = open_miniature(folder, choice=choice).train
    if file_format == "array_record":  # TFDS itself reads no TFRecord without TensorFlow
        want = [example["file_name"].decode() for example in builder.as_data_source(spec)]
        assert [split.example(i).file_name for i in range(len(split))] == want
    assert len(split) == builder.info.splits[spec].num_examples
    whole = open_miniature(folder)
    names = [whole.train.example(i).file_name for i in range(18)]
    if spec == "train[3:7]+train[12:]":
        assert [split.example(i).file_name for i in range(len(split))] == names[3:7] + names[12:]
        assert split.describe(4) == whole.train.describe(12)


def test_a_slice_trains_and_evaluates(prepared_dir):
    choice = Choice("train[:50%]", "train[50%:]")
    dataset = open_miniature(prepared_dir / "tfrecord", choice=choice)
    assert (dataset.num_train, dataset.num_eval) == (9, 9)
    (batch,) = take(dataset.train_batches(9, seed=0), 1)
    names = {dataset.train.example(i).file_name for i in range(9)}
    names |= {dataset.evaluation.example(i).file_name for i in range(9)}
    assert len(names) == 18
    assert sorted(batch["label"]) == sorted(dataset.train.example(i).label for i in range(9))
    with pytest.raises(IndexError, match=r"index must be in \[0, 9\), got 9"):
        dataset.train.example(9)


def test_a_slice_that_is_none(prepared_dir):
    with pytest.raises(
        ValueError, match=r"split 'trian': Unknown split 'trian'.*; there are train, v"
    ):
        open_miniature(prepared_dir / "tfrecord", choice=Choice("trian"))
