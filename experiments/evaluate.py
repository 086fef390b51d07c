"""Evaluates a checkpoint on its evaluation split.

    python -m experiments.evaluate --run=runs/quickstart
    python -m experiments.evaluate --run=runs/quickstart --attack=untargeted

The network and the images follow from the checkpoint. On as many devices as the training run had,
the numbers equal those of the training run bit for bit.

With --attack, each image is first changed to mislead the network (`lrnet_jax.training.attack`). The
paper's two budgets, eps 16 in 20 steps of 1 and in 10 steps of 2, are separate attacks, and
--epsilon may be given several times. The numbers of a finished run are kept in its workdir, for
`experiments.tables`.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from typing import NamedTuple

import jax
from absl import flags

import lrnet_jax
from experiments import config as configs
from experiments.cli import attack_flags, command_line, device_flags, run_flags
from experiments.config import Config, ConfigError
from experiments.run import attacks
from experiments.run.attacks import Plan
from experiments.run.check_data import check_same_classes
from experiments.run.inputs import eval_batches, make_normalize, open_data
from experiments.run.results import describe_result
from experiments.run.scores import AttackedScores, Scores
from lrnet_jax.data.dataset import Dataset
from lrnet_jax.functional import Functional, Variables, split
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
    device_flags.define_flags(flag_values)


def main(options: flags.FlagValues) -> None:
    """Entry point."""
    path = run_flags.chosen_run(options)
    plan = attack_flags.chosen_plan(options)
    device_flags.apply(options, beside_training=True)
    checkpoint = open_checkpoint(
        path, data_dir=options.data_dir, batch_size=options.batch_size, ema=options.ema
    )
    result = evaluate_checkpoint(checkpoint)
    record: dict[str, object] = dataclasses.asdict(result)
    print(describe_result(result))
    if plan is not None:
        attacked = attack_checkpoint(checkpoint, plan)
        print(*attacks.describe(attacked), sep="\n")
        attacks.keep(pathlib.Path(path), attacked)
        record["attacked"] = [dataclasses.asdict(result) for result in attacked]
    print(json.dumps(record))


class Checkpoint(NamedTuple):
    """A checkpoint that can be evaluated.

    Attributes:
      step: its training step.
      config: of its run.
      functional: its network.
      variables: params and batch_stats, on all devices.
      dataset: the images.
      batch_size: images per step over all devices.
    """

    step: int
    config: Config
    functional: Functional
    variables: Variables
    dataset: Dataset
    batch_size: int


def open_checkpoint(
    path: str,
    *,
    data_dir: str | None = None,
    batch_size: int | None = None,
    ema: bool | None = None,
) -> Checkpoint:
    """Loads a checkpoint and opens its data set.

    Args:
      path: a workdir or a step directory.
      data_dir: folder of the prepared data sets; the run's by default.
      batch_size: images per step over all devices; the run's by default.
      ema: which weights, see `lrnet_jax.load_checkpoint`.

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
    check_same_classes(metadata, dataset)
    functional, *variables = split(model)
    return Checkpoint(
        step=metadata["step"],
        config=config,
        functional=functional,
        variables=replicate(tuple(variables)),
        dataset=dataset,
        batch_size=batch_size,
    )


def evaluate_checkpoint(checkpoint: Checkpoint) -> Scores:
    """Top-1, top-5 and loss of a checkpoint on the whole evaluation split."""
    normalize = make_normalize(checkpoint.config, checkpoint.dataset)
    step = parallel(
        steps.eval_step(checkpoint.functional, normalize),
        precision=checkpoint.config.train.precision,
    )
    batches = eval_batches(checkpoint.dataset, checkpoint.batch_size)
    return Scores.at_step(checkpoint.step, evaluate(step, checkpoint.variables, batches))


def attack_checkpoint(checkpoint: Checkpoint, plan: Plan) -> list[AttackedScores]:
    """The same under an attack, for each of its budgets."""
    normalize = make_normalize(checkpoint.config, checkpoint.dataset)
    attacked_step = attacks.parallel_step(
        checkpoint.functional,
        normalize,
        targeted=plan.kind == "targeted",
        precision=checkpoint.config.train.precision,
    )
    batches = functools.partial(
        eval_batches, checkpoint.dataset, checkpoint.batch_size, with_index=True
    )
    return attacks.run(attacked_step, checkpoint.variables, batches, plan, checkpoint.step)


if __name__ == "__main__":
    command_line.run(main, define_flags)
