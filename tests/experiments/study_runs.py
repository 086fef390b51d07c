"""Workdirs of a small study."""

import dataclasses

from experiments.recipes import RECIPES
from tests.experiments import finished_run
from tests.experiments.finished_run import at_paper_budgets, under_attack


def finish(root, recipe, seed, top1, attacked=None):
    """Makes the workdir of a finished run of the study."""
    config = dataclasses.replace(RECIPES[recipe], seed=seed)
    finished_run.finish(root / f"seed{seed}" / recipe, config, top1, attacked)


def make_runs(root):
    """Four systems with three seeds, two robust ones under attack, one that is not finished."""
    for seed, (k7, k3, full) in enumerate(((90, 89.5, 80), (91, 90, 81), (92, 90.5, 82))):
        finish(root, "study/lrnet_k7", seed, k7)
        finish(root, "study/lrnet_k3", seed, k3)
        finish(root, "study/lrnet_full", seed, full)
        finish(root, "study/lrnet_m1", seed, k7 + 0.25)
    finished_run.start(root / "seed0/study/conv_k3", RECIPES["study/conv_k3"])
    sweep = [under_attack(70.0, epsilon=0.0, step_size=8.0, steps=10),
             under_attack(1.0, step_size=8.0, steps=10)]  # fmt: skip
    attacked = {"targeted": at_paper_budgets(60.0, 59.0),
                "untargeted": [*at_paper_budgets(50.0, 51.0), *sweep]}  # fmt: skip
    finish(root, "study/lrnet_robust", 0, 70, attacked)
    finish(root, "study/conv_robust", 0, 65, {"targeted": at_paper_budgets(40.0, 45.0)})
    finish(root, "quickstart", 0, 88)
    return root
