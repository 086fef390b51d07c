"""Preparing ImageNet from miniature tars in the real layout: the checks, and the real builder."""

import collections
import importlib.util
import os
import shutil
import signal
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from experiments import prepare_imagenet
from experiments.prepare_imagenet import Counts, PreparationError, check_tars, prepare, verify
from lrnet_jax.data import DamagedDatasetError, imagenet
from tests.lrnet_jax.data import miniature

COUNTS = Counts(len(miniature.SYNSETS), miniature.TRAIN, miniature.VALIDATION)
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs the extra `prepare`"
)


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
    with pytest.raises(PreparationError, match=f"{tmp_path}/{name} is missing; get it at https"):
        check(tmp_path)


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.6])
def test_a_tar_is_cut_short(tmp_path, name, keep):
    miniature.write_tars(tmp_path)
    path = tmp_path / name
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(PreparationError, match=f"{path}.*download it again"):
        check(tmp_path)


def test_one_validation_image_is_missing(tmp_path):
    """The fault that the builder answers with wrong labels."""
    images = miniature.validation_images()
    del images["ILSVRC2012_val_00000004.JPEG"]
    miniature.write_tars(tmp_path, validation=images)
    with pytest.raises(PreparationError, match=r"9 files, not the 10 .* \['ILSVRC2012_val_0+4.JP"):
        check(tmp_path)


def test_a_strange_validation_image(tmp_path):
    images = miniature.validation_images()
    images["val/ILSVRC2012_val_00000004.JPEG"] = images.pop("ILSVRC2012_val_00000004.JPEG")
    miniature.write_tars(tmp_path, validation=images)
    with pytest.raises(PreparationError, match=r"unknown \['val/ILSVRC2012_val_00000004.JPEG'\]"):
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
    with pytest.raises(PreparationError, match=message):
        check(tmp_path)


def test_an_inner_tar_is_cut_short(tmp_path):
    miniature.write_tars(tmp_path)
    inner = {f"{s}.tar": miniature.tar(files) for s, files in miniature.train_images().items()}
    inner["n01739381.tar"] = inner["n01739381.tar"][:4000]
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(miniature.tar(inner))
    with pytest.raises(PreparationError, match=r"n01739381\.tar is cut short"):
        check(tmp_path)


def test_a_full_disk(tmp_path, monkeypatch):
    miniature.write_tars(tmp_path)
    usage = collections.namedtuple("usage", "total used free")
    tars = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2 * tars))
    prepare_imagenet.check_space(tmp_path, tmp_path / "new" / "folder")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2 * tars - 1))
    with pytest.raises(PreparationError, match=f"{tmp_path} has 0 GB free, 0 GB are needed"):
        prepare_imagenet.check_space(tmp_path, tmp_path)


def test_leftovers_of_a_killed_run(tmp_path):
    target = tmp_path / "imagenet2012" / "5.1.0"
    (tmp_path / "imagenet2012" / "incomplete.A1B2C3_5.1.0").mkdir(parents=True)
    with pytest.raises(PreparationError, match=r"incomplete\.A1B2C3_5\.1\.0 is the unfinished f"):
        prepare_imagenet.refuse_leftovers(target)


def test_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PreparationError, match=r"needs TensorFlow; pip install 'lrnet-jax\[prep"):
        prepare(tmp_path, tmp_path)


def test_verify_compares_labels(tmp_path):
    miniature.unpack(tmp_path)
    labels = prepare_imagenet.validation_labels(tfds)
    assert len(labels) == 50_000
    verify(tmp_path / "array_record", COUNTS, labels)
    with pytest.raises(PreparationError, match=r"\(ILSVRC2012_val_\d+.JPEG\) of split validation"):
        verify(tmp_path / "array_record", COUNTS, labels[1:])
    with pytest.raises(
        DamagedDatasetError, match="split train has 18 images, it must have 1281167"
    ):
        verify(tmp_path / "array_record", Counts(), labels)


@pytest.fixture
def tars(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "tars"
    folder.mkdir()
    miniature.write_tars(folder)
    return folder


@needs_tensorflow
@pytest.mark.parametrize("file_format", miniature.FORMATS)
def test_the_real_builder(tars, tmp_path, file_format):
    target = prepare(tars, tmp_path / "data", file_format, counts=COUNTS, num_shards=2)
    assert target == tmp_path / "data" / "imagenet2012" / "5.1.0"
    miniature.unpack(tmp_path / "committed")
    new, committed = (
        imagenet.open_prepared(
            "imagenet2012", data_dir=str(folder), expected_counts=miniature.EXPECTED
        )
        for folder in (tmp_path / "data", tmp_path / "committed" / file_format)
    )
    for index in range(miniature.TRAIN):
        assert new.train.example(index)[1:] == committed.train.example(index)[1:]
    for index in range(miniature.VALIDATION):
        assert new.evaluation.example(index) == committed.evaluation.example(index)
    # Again: nothing to build, so the tars are no longer needed.
    shutil.rmtree(tars)
    assert prepare(tars, tmp_path / "data", file_format, counts=COUNTS) == target
    other = next(name for name in miniature.FORMATS if name != file_format)
    with pytest.raises(PreparationError, match=f"already, in {file_format} format, not {other}"):
        prepare(tars, tmp_path / "data", other, counts=COUNTS)


@needs_tensorflow
@pytest.mark.parametrize("end", ["exception", "sigterm"])
def test_nothing_is_left_after_a_failure(tars, tmp_path, monkeypatch, end):
    builder = type(tfds.builder("imagenet2012", data_dir=tmp_path / "data"))

    def fail(*_):
        assert list((tmp_path / "data" / "imagenet2012").glob("incomplete.*"))
        if end == "exception":
            raise OSError("disk on fire")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(builder, "_fix_image", fail)
    before = signal.getsignal(signal.SIGTERM)
    prepare_imagenet.end_orderly_on_sigterm()
    try:
        with pytest.raises((OSError, SystemExit), match=r"disk on fire|ended by SIGTERM"):
            prepare(tars, tmp_path / "data", counts=COUNTS)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list((tmp_path / "data" / "imagenet2012").glob("*"))


def test_the_command(tmp_path):
    """Errors a user can mend end it with one line; here a missing tar, or no TensorFlow."""
    command = [sys.executable, "-m", "experiments.prepare_imagenet"]
    command += [f"--manual_dir={tmp_path}", f"--data_dir={tmp_path}/data"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("prepare_imagenet: ")
    assert "pip install" in last or "is missing; get it" in last
