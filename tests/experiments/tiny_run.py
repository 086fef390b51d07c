"""A run that takes seconds, and what two runs must have in common."""

import json

import numpy as np
import orbax.checkpoint as ocp

from experiments.recipes import RECIPES
from experiments.run.overrides import override_all
from lrnet_jax.training import checkpoints
from lrnet_jax.training.metric_writers import METRICS

TINY = {
    "model.depths": "1",
    "model.width": "4",
    "model.stage_channels": "8",
    "model.stem_channels": "4",
    "model.kernel_size": "3",
    "model.stem_kernel_size": "3",
    "model.implementation": "reference",
    "train.epochs": "0.0064",
    "train.batch_size": "8",
    "train.eval_batch_size": "600",  # 2,000 images: the tail is padded
    "train.eval_every_epochs": "0",
    "train.log_every": "3",
    "train.checkpoint_every": "4",
    "train.ema_decay": "0.7",
}


def tiny(**changes):
    """quickstart cut down to 8 steps of a network that compiles in seconds."""
    return override_all(RECIPES["quickstart"], list({**TINY, **changes}.items()))


def metrics(workdir, kind="train"):
    lines = (workdir / METRICS).read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def saved(workdir):
    """All arrays of a run's newest checkpoint, read without our code: {"model/..": array}."""
    folder = checkpoints.find(workdir).folder
    found = {}
    for item in ("model", "ema", "training"):
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(folder / item)
        found |= {f"{item}/{path}": np.asarray(x) for path, x in checkpoints.flatten(tree).items()}
    return found


def assert_same_runs(one, other):
    """All arrays of the last checkpoint and the record of every step: bit for bit."""
    assert metrics(one) == metrics(other)
    assert metrics(one, "eval") == metrics(other, "eval")
    a, b = saved(one), saved(other)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype
        assert a[path].tobytes() == b[path].tobytes(), path
