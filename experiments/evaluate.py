"""Evaluates a checkpoint on its evaluation split.

    python -m experiments.evaluate --checkpoint=runs/quickstart
    python -m experiments.evaluate --checkpoint=runs/quickstart --attack=untargeted

The checkpoint says how to build the network and which images it was trained on; on as many devices
as the training run had, the numbers are the training run's own, bit for bit.

With --attack, each image is changed first so that the network errs (`lrnet_jax.training.attack`);
the paper's budgets, eps 16 in 20 steps of 1 and in 10 of 2, are attacks of their own, and --epsilon
may be given several times. Of a finished run the numbers are kept in its workdir, for
`experiments.tables`.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

import lrnet_jax
from experiments import attacks, command_line
from experiments import config as configs
from experiments.attacks import Budget, Plan
from experiments.config import ConfigError
from experiments.inputs import eval_batches, make_normalize, open_data
from experiments.results import describe_result
from lrnet_jax.training import steps
from lrnet_jax.training.evaluation import evaluate

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A workdir (its newest good checkpoint), or one step of it."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where prepared data sets lie here; the run's own place by default."
)
_EMA = flags.DEFINE_boolean(
    "ema", None, "The averaged weights (--noema: the last); where the run kept them by default."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images per step over all devices; the run's own by default.", lower_bound=1
)
_ATTACK = flags.DEFINE_enum("attack", None, attacks.KINDS, "Attack the images first.")
_EPSILON = flags.DEFINE_multi_float(
    "epsilon", 16.0, "How far a pixel may be moved, of 255; several are several attacks.",
    lower_bound=0.0,
)  # fmt: skip
_STEPS = flags.DEFINE_integer(
    "steps", None, "Of the attack, with --step_size: instead of the paper's two.", lower_bound=0
)
_STEP_SIZE = flags.DEFINE_float("step_size", None, "Of the attack, of 255.", lower_bound=0.0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the attack's random starts and targets.", lower_bound=0)


def main() -> None:
    """Entry point."""
    if not _CHECKPOINT.value:
        raise ConfigError("--checkpoint=DIR is missing; give the workdir of a run")
    result = evaluate_checkpoint(
        _CHECKPOINT.value,
        data_dir=_DATA_DIR.value,
        batch_size=_BATCH_SIZE.value,
        ema=_EMA.value,
        attack=_ATTACK.value,
        budgets=chosen_budgets(),
        seed=_SEED.value,
    )
    print(describe_result(result))
    if _ATTACK.value:
        for line in attacks.describe(_ATTACK.value, result["attacked"]):
            print(line)
        attacks.keep(pathlib.Path(_CHECKPOINT.value), _ATTACK.value, result)
    print(json.dumps(result))


def chosen_budgets() -> tuple[Budget, ...]:
    """What --epsilon, --steps and --step_size describe.

    Raises:
      ConfigError: one of --steps and --step_size without the other.
    """
    steps, size = _STEPS.value, _STEP_SIZE.value
    if (steps is None) != (size is None):
        raise ConfigError(
            f"--steps={steps} and --step_size={size} make one budget; give both or none"
        )
    kinds = attacks.PAPER_BUDGETS
    if steps is not None and size is not None:
        kinds = (Budget(0.0, size, steps),)
    return tuple(
        dataclasses.replace(budget, epsilon=epsilon)
        for epsilon in _EPSILON.value
        for budget in kinds
    )  # fmt: skip


def chosen_plan() -> Plan | None:
    """What the flags of the attack describe; None without --attack.

    Raises:
      ConfigError: see `chosen_budgets`.
    """
    if not _ATTACK.value:
        return None
    typed = [f"--attack={_ATTACK.value}", f"--seed={_SEED.value}"]
    typed += [f"--epsilon={epsilon:g}" for epsilon in _EPSILON.value]
    if _STEPS.value is not None:  # and so is the step size
        typed += [f"--steps={_STEPS.value}", f"--step_size={_STEP_SIZE.value}"]
    return Plan(_ATTACK.value, chosen_budgets(), _SEED.value, tuple(typed))


def evaluate_checkpoint(
    path: str,
    *,
    data_dir: str | None = None,
    batch_size: int | None = None,
    ema: bool | None = None,
    attack: str | None = None,
    budgets: Sequence[Budget] = attacks.PAPER_BUDGETS,
    seed: int = 0,
) -> dict[str, Any]:
    """Top-1, top-5 and loss of a checkpoint on the whole evaluation split.

    Args:
      path: a workdir or a step directory.
      data_dir: where the data set lies, if not where the run had it.
      batch_size: images per step over all devices, if not the run's.
      ema: which weights, see `lrnet_jax.load_checkpoint`.
      attack: "targeted" or "untargeted", for numbers under attack beside them ("attacked": a dict
        for each budget).
      budgets: of the attack.
      seed: of the attack.

    Raises:
      CheckpointError: it cannot be read.
      ConfigError: its configuration cannot be evaluated here.
      MissingDatasetError: the data set is not on this machine.
    """
    model, metadata = lrnet_jax.load_checkpoint(path, ema=ema)
    for message in metadata["damaged"]:
        print(f"{message}; step {metadata['step']} is evaluated", file=sys.stderr)
    config = configs.from_dict(metadata["config"])
    if data_dir is not None:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, data_dir=data_dir)
        )
    batch_size = batch_size or config.train.eval_batch_size
    if batch_size % jax.device_count():
        raise ConfigError(
            f"--batch_size={batch_size} is not divisible by {jax.device_count()} devices"
        )
    dataset = open_data(config)
    functional, params, batch_stats = steps.split(model)
    step = steps.parallel(steps.eval_step(functional, make_normalize(config, dataset)))
    params, batch_stats = steps.replicate((params, batch_stats))
    result = evaluate(step, params, batch_stats, eval_batches(dataset, batch_size))
    result = {"step": metadata["step"], **result}
    if attack is not None:
        normalize = make_normalize(config, dataset)
        step = attacks.parallel_step(functional, normalize, targeted=attack == "targeted")
        batches = functools.partial(attacks.batches, dataset, batch_size)
        result["attacked"] = attacks.run(step, params, batch_stats, batches, budgets, seed)
    return result


if __name__ == "__main__":
    command_line.run(main)
