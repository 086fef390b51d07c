"""Training on a folder of images: as on the records of the same images, resumed, evaluated."""

import json
import shutil

import numpy as np
import pytest

from experiments import train as command
from experiments.config import ConfigError
from experiments.evaluate import evaluate_checkpoint, open_checkpoint
from experiments.run.bad_step import save_bad_step
from experiments.run.inputs import open_data
from experiments.train import train
from lrnet_jax.training import checkpoints
from tests.experiments.tiny_run import assert_same_runs, metrics, tiny
from tests.lrnet_jax.data import image_folders
from tests.lrnet_jax.data.image_folders import CLASSES, noise, three_classes, write

TRAIN, EVALUATION = three_classes(8), three_classes(3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same images as a folder and as records."""
    root = tmp_path_factory.mktemp("data")
    write(root / "images/train", TRAIN)
    write(root / "images/val", EVALUATION)
    image_folders.build_classes(root / "tfds", {"train": TRAIN, "validation": EVALUATION})
    return root


def config(data_dir, name="folder"):
    """Six steps of two epochs."""
    fields = {"data.name": name, "data.data_dir": str(data_dir), "data.image_size": "8"}
    fields |= {"data.workers": "0", "train.epochs": "2", "train.eval_batch_size": "4"}
    return tiny(**fields)


@pytest.fixture(scope="module")
def run(data):
    """A finished run on the folder: (workdir, result)."""
    return data / "run", train(config(data / "images"), data / "run")


def test_a_run_on_the_records_of_the_images_is_the_same_bit_for_bit(run, data, tmp_path):
    workdir, result = run
    assert (result.count, len(metrics(workdir))) == (9, 6)
    assert train(config(data / "tfds", "theirs"), tmp_path / "records") == result
    assert_same_runs(workdir, tmp_path / "records")


def test_the_checkpoint_has_the_class_names(run):
    workdir, _ = run
    metadata = checkpoints.find(workdir).metadata
    assert tuple(metadata["class_names"]) == CLASSES
    assert (metadata["images"]["num_train"], metadata["images"]["num_eval"]) == (24, 9)


def test_the_images_of_a_bad_step_are_named_by_their_paths(data, tmp_path):
    bad = config(data / "images")
    dataset = open_data(bad)
    save_bad_step(tmp_path, bad, dataset, 2, "loss is nan")
    record = json.loads((tmp_path / "bad_step/2/step.json").read_text())
    images = [dataset.train.example(image) for image in record["images"]]
    for name, image in zip(record["names"], images, strict=True):
        assert name.startswith(f"{data}/images/train/{image.file_name} (image ")
    with np.load(tmp_path / "bad_step/2/batch.npz") as batch:
        assert batch["label"].tolist() == [image.label for image in images]


def stop_after(steps, monkeypatch):
    """The power fails after so many steps."""
    whole = command.prefetch

    class PowerCutError(Exception):
        pass

    def cut(batches, put):
        def some():
            for step, batch in enumerate(batches):
                if step == steps:
                    raise PowerCutError
                yield batch

        return whole(some(), put)

    monkeypatch.setattr(command, "prefetch", cut)
    return pytest.raises(PowerCutError)


def test_a_run_is_resumed_with_the_same_images_only(run, data, tmp_path, monkeypatch):
    workdir, result = run
    moved, stopped = tmp_path / "moved", tmp_path / "stopped"
    shutil.copytree(data / "images", moved)
    with monkeypatch.context() as patch, stop_after(5, patch):
        train(config(data / "images"), stopped)
    assert checkpoints.find(stopped).folder.name == "4"
    write(moved, {"train/cat/new.png": noise(1)})
    with pytest.raises(ConfigError, match=r"have changed since step 4, from 24 \+ 9 to 25 \+ 9"):
        train(config(moved), stopped)
    (moved / "train/cat/new.png").unlink()
    assert train(config(moved), stopped) == result
    assert_same_runs(workdir, stopped)


def test_an_evaluation_needs_the_same_classes(run, data, tmp_path):
    workdir, result = run
    assert evaluate_checkpoint(open_checkpoint(str(workdir))) == result
    shutil.copytree(data / "images", tmp_path / "other")
    for split in ("train", "val"):
        (tmp_path / "other" / split / "cup").rename(tmp_path / "other" / split / "mug")
    with pytest.raises(ConfigError, match="has classes that the network has not: 'mug'"):
        open_checkpoint(str(workdir), data_dir=str(tmp_path / "other"))
