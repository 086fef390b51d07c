"""Evaluates a checkpoint on its evaluation split.

    python -m experiments.evaluate --run=runs/quickstart
    python -m experiments.evaluate --run=runs/quickstart --attack=untargeted

The checkpoint says how to build the network and which images it was trained on; on as many devices
as the training run had, the numbers are the training run's own, bit for bit.

With --attack, each image is changed first so that the network errs (`lrnet_jax.training.attack`);
the paper's budgets, eps 16 in 20 steps of 1 and in 10 of 2, are attacks of their own, and --epsilon
may be given several times. Of a finished run the numbers are kept in its workdir, for
`experiments.tables`.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

import lrnet_jax
from experiments import config as configs
from experiments.cli import attack_flags, command_line, run_flags
from experiments.config import ConfigError
from experiments.run import attacks
from experiments.run.attacks import Budget
from experiments.run.inputs import eval_batches, make_normalize, open_data
from experiments.run.results import describe_result
from lrnet_jax.functional import split
from lrnet_jax.training import steps
from lrnet_jax.training.devices import parallel, replicate
from lrnet_jax.training.evaluation import evaluate


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    run_flags.define_flags(flag_values, alias="checkpoint")
    flags.DEFINE_string(
        "data_dir", None, "Folder of the prepared data sets (default: the run's).",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "ema", None,
        "Evaluate the averaged weights, or with --noema the last ones (default: the averaged ones "
        "if the run kept them).",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "batch_size", None, "Images per step over all devices (default: the run's).",
        lower_bound=1, flag_values=flag_values,
    )  # fmt: skip
    attack_flags.define_flags(flag_values)


def main(options: flags.FlagValues) -> None:
    """Entry point."""
    path = run_flags.chosen_run(options)
    plan = attack_flags.chosen_plan(options)
    result = evaluate_checkpoint(
        path,
        data_dir=options.data_dir,
        batch_size=options.batch_size,
        ema=options.ema,
        attack=plan.kind if plan else None,
        budgets=plan.budgets if plan else (),
        seed=plan.seed if plan else 0,
    )
    print(describe_result(result))
    if plan is not None:
        for line in attacks.describe(plan.kind, result["attacked"]):
            print(line)
        attacks.keep(pathlib.Path(path), plan.kind, result)
    print(json.dumps(result))


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
    batch_size = batch_size or config.train.eval_batch_size
    if batch_size % jax.device_count():
        raise ConfigError(
            f"--batch_size={batch_size} is not divisible by {jax.device_count()} devices"
        )
    dataset = open_data(config, data_dir)
    functional, params, batch_stats = split(model)
    normalize = make_normalize(config, dataset)
    step = parallel(steps.eval_step(functional, normalize))
    params, batch_stats = replicate((params, batch_stats))
    result = evaluate(step, params, batch_stats, eval_batches(dataset, batch_size))
    result = {"step": metadata["step"], **result}
    if attack is not None:
        step = attacks.parallel_step(functional, normalize, targeted=attack == "targeted")
        batches = functools.partial(eval_batches, dataset, batch_size, with_index=True)
        result["attacked"] = attacks.run(step, params, batch_stats, batches, budgets, seed)
    return result


if __name__ == "__main__":
    command_line.run(main, define_flags)
