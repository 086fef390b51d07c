"""The checks of ImageNet's tars, on miniature tars in the real layout."""

import os

import pytest

from experiments.config import ConfigError
from experiments.prepare.imagenet_tars import Counts, check_tars
from tests.lrnet_jax.data import miniature

COUNTS = Counts(len(miniature.SYNSETS), miniature.TRAIN, miniature.VALIDATION)


def check(folder, counts=COUNTS):
    check_tars(folder, counts, miniature.SYNSETS)


def test_whole_tars_pass(tmp_path):
    miniature.write_tars(tmp_path)
    check(tmp_path)


def test_the_real_numbers():
    assert Counts() == (1000, 1_281_167, 50_000)


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_a_tar_is_missing(tmp_path, name):
    miniature.write_tars(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=f"{tmp_path}/{name} is missing; get it at https"):
        check(tmp_path)


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.6])
def test_a_tar_is_cut_short(tmp_path, name, keep):
    miniature.write_tars(tmp_path)
    path = tmp_path / name
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(ConfigError, match=f"{path}.*download it again"):
        check(tmp_path)


def test_one_validation_image_is_missing(tmp_path):
    """The builder answers this fault with wrong labels."""
    images = miniature.validation_images()
    del images["ILSVRC2012_val_00000004.JPEG"]
    miniature.write_tars(tmp_path, validation=images)
    with pytest.raises(ConfigError, match=r"9 files, not the 10 .* \['ILSVRC2012_val_0+4.JP"):
        check(tmp_path)


def test_a_strange_validation_image(tmp_path):
    images = miniature.validation_images()
    images["val/ILSVRC2012_val_00000004.JPEG"] = images.pop("ILSVRC2012_val_00000004.JPEG")
    miniature.write_tars(tmp_path, validation=images)
    with pytest.raises(ConfigError, match=r"unknown \['val/ILSVRC2012_val_00000004.JPEG'\]"):
        check(tmp_path)


def change_train(change):
    images = miniature.train_images()
    change(images)
    return images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["n01440764"].popitem(), "17 images of 3 synsets, it must hold 18 of 3"),
        (lambda t: t.pop("n01440764"), "12 images of 2 synsets, it must hold 18 of 3"),
        (lambda t: t.update(n99999999={}), "n99999999.tar, which is not one tar of a synset"),
        (
            lambda t: t["n01440764"].update({"n01739381_7.JPEG": b"x"}),
            "n01440764.tar holds n01739381_7.JPEG, which does not belong there",
        ),
        (
            lambda t: t["n01440764"].update({"n01440764_2.JPEG": b""}),
            "n01440764_2.JPEG, which is empty",
        ),
    ],
)
def test_faults_of_the_training_tar(tmp_path, change, message):
    miniature.write_tars(tmp_path, train=change_train(change))
    with pytest.raises(ConfigError, match=message):
        check(tmp_path)


def test_an_inner_tar_is_cut_short(tmp_path):
    miniature.write_tars(tmp_path)
    inner = {f"{s}.tar": miniature.tar(files) for s, files in miniature.train_images().items()}
    inner["n01739381.tar"] = inner["n01739381.tar"][:4000]
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(miniature.tar(inner))
    with pytest.raises(ConfigError, match=r"n01739381\.tar is cut short"):
        check(tmp_path)
