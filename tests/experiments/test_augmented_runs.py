"""Runs with drop path, RandAugment and random erasing."""

import contextlib

import jax
import numpy as np
import pytest

from experiments import train as module
from experiments.run.inputs import make_augment, make_normalize, open_data
from experiments.train import train
from lrnet_jax.training import checkpoints
from tests.experiments.tiny_run import assert_same_runs, tiny

AUGMENTED = {"data.randaugment": "2", "data.random_erasing": "0.5", "train.drop_path": "0.5"}


class PowerCutError(Exception):
    """Stands for the end of the process."""


def test_an_interrupted_run_ends_as_the_uninterrupted_one(tmp_path, monkeypatch):
    config, whole, stopped = tiny(**AUGMENTED), tmp_path / "whole", tmp_path / "stopped"
    result = train(config, whole)

    def cut(batches, put):
        for step, batch in enumerate(batches, start=1):
            if step == 7:
                raise PowerCutError
            yield put(batch)

    with monkeypatch.context() as patch:
        patch.setattr(module, "prefetch", lambda *a: contextlib.closing(cut(*a)))
        with pytest.raises(PowerCutError):
            train(config, stopped)
    assert checkpoints.find(stopped).folder.name == "4"
    assert train(config, stopped) == result
    assert_same_runs(whole, stopped)


def images(**changes):
    """The first batch as a run augments it."""
    config = tiny(**{"data.flip": "false", **changes})
    dataset = open_data(config)
    batch = next(dataset.train_batches(64, seed=0))
    augment = make_augment(config, dataset, make_normalize(config, dataset))
    return np.asarray(jax.jit(augment)(batch["image"], batch["index"], jax.random.key(0)))


def test_each_is_part_of_the_step_where_it_is_configured():
    plain = images()
    moved = images(**{"data.randaugment": "1"})
    assert (moved != plain).any((1, 2, 3)).mean() > 0.5
    erased = images(**{"data.random_erasing": "1"})
    share = (erased != plain).any(-1).mean()
    assert 0.05 < share < 0.33
    # The colour is the mean of the data set, rounded to a level.
    assert np.abs(erased[(erased != plain).any(-1)]).max() < 0.5 / 80


def test_images_that_will_be_attacked_stay_levels():
    attacked = tiny(**{**AUGMENTED, "attack.steps": "1"})
    dataset = open_data(attacked)
    pixels = make_augment(attacked, dataset, make_normalize(attacked, dataset))
    batch = next(dataset.train_batches(4, seed=0))
    shapes = jax.eval_shape(pixels, batch["image"], batch["index"], jax.random.key(0))
    assert shapes.dtype == np.uint8
