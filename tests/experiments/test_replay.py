"""A run that diverges: where it stops, what it leaves, what the replay prints."""

import json
import math

import numpy as np
import pytest

from experiments.config import ConfigError
from experiments.replay import replay
from experiments.run.bad_step import FOLDER
from experiments.run.inputs import open_data
from experiments.train import train
from lrnet_jax.training import checkpoints
from lrnet_jax.training.divergence import DivergedError
from tests.experiments.tiny_run import metrics, tiny


def test_an_exploding_run_stops_and_its_step_can_be_replayed(tmp_path):
    workdir = tmp_path / "run"
    config = tiny(**{"optim.learning_rate": "1e25", "train.checkpoint_every": "1"})
    with pytest.raises(DivergedError, match=r"^step \d: ") as raised:
        train(config, workdir)
    bad = metrics(workdir)[-1]
    assert not (math.isfinite(bad["loss"]) and math.isfinite(bad["gradient_norm"]) and
                bad["loss"] < config.train.max_loss)  # fmt: skip
    assert all(record["loss"] < 1000 for record in metrics(workdir)[:-1])
    folder = workdir / FOLDER / str(bad["step"])
    record = json.loads((folder / "step.json").read_text())
    assert record["checkpoint"] == bad["step"] - 1
    assert checkpoints.find(workdir).metadata["step"] == bad["step"] - 1
    for text in (f"step {bad['step']}: ", str(folder), f"{record['images'][:8]}"):
        assert text in str(raised.value)

    batch = dict(np.load(folder / "batch.npz"))
    dataset = open_data(config)
    images = dataset.train_images[record["images"]]
    np.testing.assert_array_equal(batch["image"], np.repeat(images, 3, axis=3))
    np.testing.assert_array_equal(batch["label"], dataset.train_labels[record["images"]])

    lines = replay(folder)
    again = json.loads(lines[0].partition(": ")[2])
    np.testing.assert_equal(again, {name: bad[name] for name in again})
    assert checkpoints.find(folder / "state").metadata["step"] == bad["step"] - 1

    # The same command tries again, with the same end.
    with pytest.raises(DivergedError, match=f"step {bad['step']}: "):
        train(config, workdir)


def test_there_is_nothing_to_replay(tmp_path):
    with pytest.raises(ConfigError, match="holds no bad step"):
        replay(tmp_path)
