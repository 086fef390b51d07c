"""What a finished run has on disk, as far as the reports read it."""

import json

from experiments import config as configs
from experiments.run import attacks
from experiments.run.results import FILE as RESULT
from experiments.run.scores import AttackedScores
from lrnet_jax.functional import split
from lrnet_jax.training.checkpoint_saver import write_model

STEP = 9


def start(workdir, config):
    """Makes the workdir of a run that is not finished."""
    workdir.mkdir(parents=True)
    (workdir / configs.FILE).write_text(json.dumps(configs.to_dict(config)))


def finish(workdir, config, top1, attacked=None):
    """Makes the workdir of a finished run.

    Args:
      workdir: a new folder.
      config: of the run.
      top1: of its last evaluation.
      attacked: for each kind of attack, records from `under_attack`.
    """
    start(workdir, config)
    scores = {"top1": top1, "top5": 99.96, "loss": 0.5, "count": 2000}
    (workdir / RESULT).write_text(json.dumps({"step": STEP, **scores}))
    for kind, records in (attacked or {}).items():
        attacks.keep(workdir, [AttackedScores(kind, STEP, **record) for record in records])


def under_attack(top1, epsilon=16.0, step_size=1.0, steps=20):
    """The record of one attack but its kind and step; by default at the paper's first budget."""
    budget = {"epsilon": epsilon, "step_size": step_size, "steps": steps}
    return {**budget, "seed": 0, "top1": top1, "top5": 99.0, "loss": 2.0, "count": 2000}


def at_paper_budgets(first, second):
    """The records of the paper's two attacks."""
    return [under_attack(first), under_attack(second, step_size=2.0, steps=10)]


def cells(printed, label):
    """The cells of every line of a Markdown table that starts with a label."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed.splitlines()
        if line.startswith(f"| {label} |")
    ]


def checkpoint(workdir, config, model, **changes):
    """Makes a checkpoint of step `STEP` in a workdir."""
    _, params, batch_stats = split(model)
    record = {
        "network": config.network, "variant": configs.to_dict(config)["model"],
        "num_classes": model.num_classes, "class_names": None,
        "mean": [72.9] * 3, "std": [90.0] * 3, "image_size": 28,
        "step": STEP, "config": configs.to_dict(config), **changes,
    }  # fmt: skip
    folder = workdir / "checkpoints" / str(STEP)
    folder.parent.mkdir(parents=True)
    write_model(folder, {"params": params, "batch_stats": batch_stats}, record)
