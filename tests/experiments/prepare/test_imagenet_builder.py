"""Building ImageNet from miniature tars in the real layout with the real builder."""

import collections
import importlib.util
import os
import shutil
import signal

import pytest
import tensorflow_datasets as tfds

from experiments.config import ConfigError
from experiments.prepare import imagenet_builder
from experiments.prepare.imagenet_builder import prepare, verify
from experiments.prepare.imagenet_tars import Counts
from experiments.prepare_imagenet import exit_on_sigterm
from lrnet_jax.data import DamagedDatasetError, imagenet
from lrnet_jax.data.flat_imagenet import validation_synsets
from tests.lrnet_jax.data import miniature

COUNTS = Counts(len(miniature.SYNSETS), miniature.TRAIN, miniature.VALIDATION)
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs the extra `prepare`"
)


def test_a_full_disk(tmp_path, monkeypatch):
    miniature.write_tars(tmp_path)
    usage = collections.namedtuple("usage", "total used free")
    tars = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2 * tars))
    imagenet_builder.check_space(tmp_path, tmp_path / "new" / "folder")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2 * tars - 1))
    with pytest.raises(ConfigError, match=f"{tmp_path} has 0 GB free, 0 GB are needed"):
        imagenet_builder.check_space(tmp_path, tmp_path)


def test_leftovers_of_a_killed_run(tmp_path):
    target = tmp_path / "imagenet2012" / "5.1.0"
    (tmp_path / "imagenet2012" / "incomplete.A1B2C3_5.1.0").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"incomplete\.A1B2C3_5\.1\.0 is the unfinished f"):
        imagenet_builder.refuse_leftovers(target)


def test_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs TensorFlow; .*-m pip install -e .*\[prepare\]"):
        prepare(tmp_path, tmp_path)


def test_verify_compares_labels(tmp_path):
    miniature.unpack(tmp_path)
    labels = validation_synsets()
    assert len(labels) == 50_000
    verify(tmp_path / "array_record", COUNTS, labels)
    with pytest.raises(ConfigError, match=r"\(ILSVRC2012_val_\d+.JPEG\) of split validation"):
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
    # The second time nothing is built, so the tars are not needed.
    shutil.rmtree(tars)
    assert prepare(tars, tmp_path / "data", file_format, counts=COUNTS) == target
    other = next(name for name in miniature.FORMATS if name != file_format)
    with pytest.raises(ConfigError, match=f"already, in {file_format} format, not {other}"):
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
    exit_on_sigterm()
    try:
        with pytest.raises((OSError, SystemExit), match=r"disk on fire|ended by SIGTERM"):
            prepare(tars, tmp_path / "data", counts=COUNTS)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list((tmp_path / "data" / "imagenet2012").glob("*"))
