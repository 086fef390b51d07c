"""Folders of images: what they hold, in which order, and what is refused."""

import dataclasses
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import ExifTags, Image

from lrnet_jax.data import (
    BadImageError,
    DamagedDatasetError,
    MissingDatasetError,
    listing,
    open_dataset,
)
from lrnet_jax.data.class_folders import list_folder
from tests.lrnet_jax.data import image_folders, miniature
from tests.lrnet_jax.data.image_folders import CLASSES, noise, three_classes, write
from tests.lrnet_jax.data.miniature import SIZE, open_miniature
from tests.lrnet_jax.data.streams import assert_same, take


def open_images(path, **options):
    options = {"image_size": 8, "num_workers": 0} | options
    return open_dataset("folder", data_dir=str(path), **options)


def paths(split):
    return [split.example(index).file_name for index in range(len(split))]


@pytest.fixture
def images(tmp_path):
    """train with 5 images of each of 3 classes, val with 2."""
    write(tmp_path, three_classes(5, "train/") | three_classes(2, "val/"))
    return tmp_path


def test_description(images):
    dataset = open_images(images)
    assert (dataset.name, dataset.num_classes, dataset.image_size) == ("folder", 3, 8)
    assert (dataset.num_train, dataset.num_eval) == (15, 6)
    assert dataset.class_names == CLASSES
    assert open_images(images, image_size=None).image_size == 224
    for split in (dataset.train, dataset.evaluation):
        for index in range(len(split)):
            example = split.example(index)
            assert example.file_name.partition("/")[0] == CLASSES[example.label]


def test_the_same_batches_as_the_records_that_tfds_makes_of_the_images(tmp_path):
    """Order, labels and pixels of both splits, with TFDS's own builder as the other side."""
    train, val = three_classes(9), three_classes(4)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    lying = np.random.default_rng(0).integers(0, 256, (12, 30, 3), np.uint8)
    train["cup/lying.jpg"] = image_folders.encode(lying, "JPEG", exif=exif)
    write(tmp_path / "images/train", train)
    write(tmp_path / "images/val", val)
    image_folders.build_classes(tmp_path / "tfds", {"train": train, "validation": val})
    records = open_dataset("theirs", data_dir=str(tmp_path / "tfds"), image_size=8, num_workers=0)
    ours = open_images(tmp_path / "images")
    assert_same(*(take(d.train_batches(4, seed=3), 14) for d in (ours, records)))
    assert_same(*(list(d.eval_batches(5)) for d in (ours, records)))
    assert ours.class_names == records.class_names


def unpack_imagenet(path, dataset):
    """The images of the prepared miniature as a folder, with the bytes that the records have."""
    for name, split in (("train", dataset.train), ("val", dataset.evaluation)):
        for index in range(len(split)):
            example = split.example(index)
            synset = dataset.class_names[example.label]
            write(path / name, {f"{synset}/{example.file_name}": example.encoded})


@pytest.mark.parametrize("file_format", miniature.FORMATS)
def test_an_unpacked_imagenet_gives_the_batches_of_its_records(prepared_dir, tmp_path, file_format):
    """The committed miniature, which TFDS wrote from tars as it does the real ones."""
    records = open_miniature(prepared_dir / file_format)
    unpack_imagenet(tmp_path, records)
    names = records.class_names  # the miniature has images of a few of the thousand classes
    train, evaluation = (
        list_folder(tmp_path / name, names).split(name) for name in ("train", "val")
    )
    ours = dataclasses.replace(records, train=train, evaluation=evaluation)
    assert_same(*(take(d.train_batches(4, seed=1), 9) for d in (ours, records)))
    assert_same(*(list(d.eval_batches(4)) for d in (ours, records)))


def test_imagenet_s_validation_images_need_no_class_folders(prepared_dir, tmp_path):
    """As their tar unpacks: the labels come from a list, and order and pixels are the same."""
    records = open_miniature(prepared_dir / "tfrecord")
    examples = [records.evaluation.example(index) for index in range(records.num_eval)]
    write(tmp_path / "val", {example.file_name: example.encoded for example in examples})
    synsets = {records.class_names[example.label] for example in examples}
    write(tmp_path / "train", {f"{synset}/{synset}_1.JPEG": noise(0) for synset in synsets})
    ours = open_images(tmp_path, image_size=SIZE)
    assert ours.class_names == tuple(sorted(synsets))
    for got, want in zip(ours.eval_batches(5), records.eval_batches(5), strict=True):
        np.testing.assert_array_equal(got["image"], want["image"])
        names = [ours.class_names[label] for label in got["label"]]
        assert names == [records.class_names[label] for label in want["label"]]
    write(tmp_path / "val", {"ILSVRC2012_val_00050001.JPEG": noise(0)})
    with pytest.raises(DamagedDatasetError, match="no image of the name ILSVRC2012_val_00050001"):
        open_images(tmp_path)
    (tmp_path / "val/ILSVRC2012_val_00050001.JPEG").unlink()
    shutil.rmtree(tmp_path / "train" / sorted(synsets)[0])
    with pytest.raises(DamagedDatasetError, match="has images of classes that training has not: n"):
        open_images(tmp_path)


def test_the_stream_is_resumed_and_shared_exactly(images):
    dataset = open_images(images)
    whole = take(dataset.train_batches(4, seed=1), 9)
    assert_same(take(dataset.train_batches(4, seed=1, start_step=5), 4), whole[5:])
    parts = [
        take(dataset.train_batches(4, seed=1, process_index=i, process_count=2), 9)
        for i in range(2)
    ]
    for step, want in enumerate(whole):
        for name in want:
            got = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(got, want[name])
    again = open_images(images, num_workers=1)
    assert_same(take(again.train_batches(4, seed=1), 2), whole[:2])


def test_order_of_classes_is_that_of_torchvision(tmp_path):
    """By code points: capitals first, 10 before 2."""
    names = ["b", "B", "2", "10", "é"]
    write(tmp_path / "train", {f"{name}/{name}.png": noise(0) for name in names})
    write(tmp_path / "val", {f"{name}/1.png": noise(0) for name in names})
    dataset = open_images(tmp_path)
    assert dataset.class_names == ("10", "2", "B", "b", "é")
    assert all(
        dataset.class_names[e.label] in e.file_name for e in map(dataset.train.example, range(5))
    )


def test_nested_folders_links_and_other_files(tmp_path, caplog):
    files = three_classes(1, "train/") | three_classes(1, "val/")
    files |= {
        "train/cat/black/deep/x.PNG": noise(1),
        "train/cat/._x.png": b"of another system",
        "train/cat/.thumbnails/x.png": noise(2),
        "train/.cache/y.png": noise(3),
        "train/cup/notes.txt": b"-",
        "elsewhere/z.jpeg": noise(4),
        "shelf/cups/1.png": noise(5),
        "train/lost.png": noise(6),
    }
    write(tmp_path, files)
    (tmp_path / "train/rocket/z.jpeg").symlink_to(tmp_path / "elsewhere/z.jpeg")
    (tmp_path / "train/cup/more").symlink_to(tmp_path / "shelf")
    with caplog.at_level(logging.INFO):
        dataset = open_images(tmp_path)
    assert set(paths(dataset.train)) == {
        "cat/cat_0.png", "cup/cup_0.png", "rocket/rocket_0.png",
        "cat/black/deep/x.PNG", "rocket/z.jpeg", "cup/more/cups/1.png",
    }  # fmt: skip
    assert f"{tmp_path}/train: left out, as no images: cup/notes.txt" in caplog.messages
    assert f"{tmp_path}/train: left out, in no class folder: lost.png" in caplog.messages
    assert len(take(dataset.train_batches(6, seed=0), 1)) == 1
    whole = tmp_path / "whole"
    whole.symlink_to(tmp_path)
    assert open_images(whole).digest == dataset.digest


def test_a_listing_that_takes_long_tells_its_progress(images, monkeypatch, caplog):
    monkeypatch.setattr(listing, "PROGRESS_SECONDS", -1)
    with caplog.at_level(logging.INFO):
        open_images(images)
    for count, part in ((5, "1 of 3"), (10, "2 of 3"), (15, "3 of 3")):
        assert f"listing {images}/train: {count} images in {part} classes" in caplog.messages


@pytest.mark.parametrize("target", [".", "..", "../../train", "../cup"])
def test_a_link_that_leads_back_is_refused(images, target):
    (images / "train/cup/back").symlink_to(images / "train/cat")
    (images / "train/cat/loop").symlink_to(images / "train/cat" / target)
    with pytest.raises(DamagedDatasetError, match=r"is a symbolic link to .*, which holds it"):
        open_images(images)


def test_links_that_lead_in_a_circle_elsewhere_are_refused(images):
    one, two = images / "elsewhere/one", images / "elsewhere/two"
    for folder, other in ((one, two), (two, one)):
        folder.mkdir(parents=True)
        (folder / "on").symlink_to(other)
    (images / "train/cat/out").symlink_to(one)
    with pytest.raises(DamagedDatasetError, match=r"out/on/on is a symbolic link to .*/one, which"):
        open_images(images)


def test_images_of_one_name_are_in_the_order_of_their_paths(tmp_path):
    write(tmp_path, {f"{name}/{part}/1.png": noise(0) for name in "ab" for part in "zyx"})
    listed = list_folder(tmp_path).split("train")
    assert paths(listed) == sorted(paths(listed))


def test_a_digest_changes_with_the_list(images):
    before = open_images(images).digest
    assert open_images(images).digest == before
    (images / "train/cat/cat_0.png").rename(images / "train/cat/cat_00.png")
    renamed = open_images(images).digest
    write(images, {"val/cup/new.png": noise(0)})
    assert len({before, renamed, open_images(images).digest}) == 3


class TestHoldout:
    @pytest.fixture
    def flat(self, tmp_path):
        write(tmp_path, three_classes(40))
        return tmp_path

    def test_each_image_is_on_one_side(self, flat):
        dataset = open_images(flat, holdout=0.25)
        train, held_out = paths(dataset.train), paths(dataset.evaluation)
        assert sorted(train + held_out) == sorted(three_classes(40))
        assert 15 <= len(held_out) <= 45  # binomial: 30, standard deviation 4.7
        assert dataset.class_names == CLASSES
        more = open_images(flat, holdout=0.5)
        assert set(held_out) < set(paths(more.evaluation))

    def test_images_that_come_later_move_no_other(self, flat):
        before = open_images(flat, holdout=0.25)
        write(flat, three_classes(60))
        after = open_images(flat, holdout=0.25)
        assert set(paths(before.evaluation)) < set(paths(after.evaluation))
        assert set(paths(before.train)) < set(paths(after.train))

    def test_it_does_not_depend_on_where_the_folder_is(self, flat, tmp_path):
        before = paths(open_images(flat, holdout=0.25).evaluation)
        write(tmp_path / "moved/train", three_classes(40))
        moved = open_images(tmp_path / "moved", holdout=0.25)
        assert paths(moved.evaluation) == before

    @pytest.mark.parametrize(
        ("share", "message"),
        [
            (1.0, r"holdout must be in \[0, 1\), got 1.0"),
            (-0.1, r"holdout must be in \[0, 1\), got -0.1"),
            (1e-9, "holdout 1e-09 holds out none of 120 images; use more"),
            (0.99, "holdout 0.99 leaves no training image of: .*; use less"),
        ],
    )
    def test_shares_that_leave_nothing_are_refused(self, flat, share, message):
        with pytest.raises(ValueError, match=message):
            open_images(flat, holdout=share)

    def test_it_excludes_other_splits(self, images):
        with pytest.raises(ValueError, match=r"holdout 0.1: .*/val is there to evaluate on"):
            open_images(images, holdout=0.1)
        with pytest.raises(ValueError, match=r"holdout 0\.1 and the choice of a split exclude"):
            open_images(images, holdout=0.1, eval_split="val")


def test_splits_are_chosen(images):
    write(images, three_classes(3, "test/") | three_classes(4, "extra/"))
    assert paths(open_images(images).evaluation) == paths(
        open_images(images, eval_split="val").evaluation
    )
    assert open_images(images, eval_split="test").num_eval == 9
    assert open_images(images, train_split="extra").num_train == 12
    assert open_images(images, train_split="train+extra").num_train == 27
    write(images, {"train-b/dog/1.png": noise(0), "train-b/fox/1.png": noise(0)})
    assert open_images(images, train_split="train-b", eval_split="train-b").num_train == 2
    whole = paths(open_images(images).train)
    sliced = open_images(images, train_split="train[:80%]", eval_split="train[80%:]")
    assert paths(sliced.train) + paths(sliced.evaluation) == whole
    assert (sliced.num_train, sliced.num_eval) == (12, 3)
    assert sliced.digest != open_images(images).digest


def rename(old, new):
    def change(root):
        (root / new).parent.mkdir(exist_ok=True)
        (root / old).rename(root / new)

    return change


def remove(pattern):
    def change(root):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("val"), "has no split to evaluate on: .* holdout=0.1 holds out a tenth"),
        (remove("train/cat/*"), "train has class folders without images: cat; add images"),
        (remove("train/*/*"), "train has class folders without images: cat, cup, rocket; add"),
        (remove("val/cat/*"), "val has class folders without images: cat; add images"),
        (remove("val/cat"), "val lacks classes that .*/train has: cat; all splits must"),
        (remove("train/cat"), "train lacks classes that .*/val has: cat; all splits must"),
        (rename("val/cat", "val/dog"), "val lacks classes that .*/train has: cat; all splits"),
        (remove("*/c*"), "train has one class only, 'rocket'; images belong in a folder for each"),
        (remove("train/*"), "train has no class folders beside .*/val; images belong in a folder"),
        (remove("val/*"), "val has no class folders; images belong in a folder for each of"),
        (rename("val/cup", "validation/cup"), "has both val and validation; choose one as eval_"),
        (remove("*"), "has no split to evaluate on"),
        (remove("train"), "train has no class folders beside .*/val; images belong in a folder"),
    ],
)
def test_what_does_not_fit_is_refused(images, change, message):
    change(images)
    with pytest.raises((DamagedDatasetError, ValueError), match=message) as raised:
        open_images(images)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_dir": None}, "the data set 'folder' needs data_dir, the folder of the images"),
        ({"eval_split": "vall"}, "split 'vall': .* has the folders train, val"),
        ({"eval_split": "val[:x]"}, r"split 'val\[:x\]': .*slices are written as in train\[:90%\]"),
        (
            {"eval_split": "val[9:]"},
            r"split 'val\[9:\]': Requested slice .* with 6 examples; there",
        ),
        ({"eval_split": "val[:0]"}, r"split 'val\[:0\]' holds no image"),
        ({"label_key": "x"}, "the data set 'folder' has no use for label_key 'x'; leave it out"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
    ],
)
def test_bad_options(images, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        open_dataset("folder", **{"data_dir": str(images)} | options)
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(MissingDatasetError, match=f"data_dir {tmp_path}/x is no folder"):
        open_images(tmp_path / "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read(images):
    (images / "train/cat").chmod(0)
    with pytest.raises(DamagedDatasetError, match="train/cat cannot be listed: Permission denied"):
        open_images(images)


class TestBadImages:
    @pytest.fixture
    def spoiled(self, images):
        """The folder with two training images that cannot be read."""
        write(images, {"train/cat/cat_1.png": b"", "train/cup/cup_1.png": b"no image"})
        return images

    def test_one_is_named_by_its_path(self, images):
        write(images, {"train/cup/cup_1.png": b"no image"})
        dataset = open_images(images)
        with pytest.raises(BadImageError) as raised:
            take(dataset.train_batches(15, seed=0), 1)
        message = str(raised.value)
        assert message.startswith(f"{images}/train/cup/cup_1.png (image ")
        assert "of split train): cannot identify image file; mend or remove it" in message
        assert "tolerate_bad_images=1" in message

    def test_some_are_tolerated(self, spoiled, caplog):
        dataset = open_images(spoiled, tolerate_bad_images=2)
        assert len(take(dataset.train_batches(15, seed=0), 2)) == 2
        replaced = sorted(m for m in caplog.messages if m.startswith("replaced bad image, "))
        assert len(replaced) == 2
        assert "1 of 2 tolerated: " in replaced[0]
        assert any(f"{spoiled}/train/cat/cat_1.png (im" in message for message in replaced)
        with pytest.raises(BadImageError, match="2 bad images, tolerate_bad_images is 1; the last"):
            take(open_images(spoiled, tolerate_bad_images=1).train_batches(15, seed=0), 1)

    def test_evaluation_tolerates_none(self, images):
        write(images, {"val/cup/cup_1.png": b""})
        with pytest.raises(BadImageError, match=r"val/cup/cup_1.png \(image . of split val\): the"):
            list(open_images(images, tolerate_bad_images=9).eval_batches(4))

    def test_one_that_is_gone(self, images):
        dataset = open_images(images)
        (images / "val/cup/cup_1.png").unlink()
        with pytest.raises(BadImageError, match=r"cup_1.png \(image .*: No such file or directory"):
            list(dataset.eval_batches(4))
