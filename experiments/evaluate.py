r"""Evaluates a checkpoint on its evaluation split, or on other images.

    python -m experiments.evaluate --run=runs/quickstart
    python -m experiments.evaluate --run=runs/quickstart --attack=untargeted
    python -m experiments.evaluate --run=runs/lrnet50 --config.data.eval_split=train[:10000]
    python -m experiments.evaluate --run=runs/lrnet50 --config.data.name=folder \
        --config.data.data_dir=imagenet-a --config.data.eval_split=train

The network and the images follow from the checkpoint. On as many devices as the training run had,
the numbers equal those of the training run bit for bit. Fields --config.data.* choose other images:
a folder or another prepared set, a split, a size. The class folders of a folder without splits are
its split "train". A prepared set with a test split alone needs its name: data.eval_split=test.

Classes are matched by their names, synsets or words. If a data set has some of the network's
classes only, as ImageNet-A and ImageNet-R have, only these compete. Folders that are numbers, as
those of ImageNet-V2, are labels. A class that the network does not have is an error.

    python -m experiments.evaluate --run=runs/lrnet50 --real_labels=real.json

also scores the reassessed labels of ImageNet's validation images (ReaL).

    python -m experiments.evaluate --run=runs/quickstart --report=DIR

writes report.html, a page with the scores of each class, the confusions, how well the network knows
when it is right, and the images of which it was sure and wrong. The tables beside it are CSV. It
needs matplotlib, python -m pip install -e '.[figures]'.

With --attack, each image is first changed to mislead the network (`lrnet_jax.training.attack`). The
paper's two budgets, eps 16 in 20 steps of 1 and in 10 steps of 2, are separate attacks, and
--epsilon may be given several times. The numbers of a finished run are kept in its workdir, for
`experiments.tables`, unless the images are others than the run's.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from tqdm import tqdm

from experiments.cli import attack_flags, command_line, config_flags, device_flags, run_flags
from experiments.config import ConfigError
from experiments.report.drawing import require_matplotlib
from experiments.report.evaluation_report import PAGE, make_report, write_report
from experiments.run import attacks
from experiments.run.attacks import Plan
from experiments.run.evaluated import Checkpoint, open_checkpoint
from experiments.run.inputs import eval_batches
from experiments.run.new_folder import check_new
from experiments.run.outcomes import Outcomes, collect, image_name, network_classes
from experiments.run.real_labels import RealScore, image_numbers, read_labels, score
from experiments.run.results import describe_result
from experiments.run.scores import AttackedScores, Scores
from lrnet_jax.training import steps
from lrnet_jax.training.attack import Budget
from lrnet_jax.training.devices import parallel
from lrnet_jax.training.evaluation import evaluate


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    run_flags.define_flags(flag_values, alias="checkpoint")
    flags.DEFINE_string(
        "data_dir", None, "Folder of the prepared data sets (default: the run's).",
        flag_values=flag_values,
    )  # fmt: skip
    config_flags.define_changes(flag_values)
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
    flags.DEFINE_string("report", None, "A new folder for a report.", flag_values=flag_values)
    flags.DEFINE_string(
        "real_labels", None, "Also score the labels of this file, real.json of ReaL.",
        flag_values=flag_values,
    )  # fmt: skip
    attack_flags.define_flags(flag_values)
    device_flags.define_flags(flag_values)


def main(options: flags.FlagValues) -> None:
    """Entry point."""
    path = run_flags.chosen_run(options)
    plan = attack_flags.chosen_plan(options)
    changes = config_flags.chosen_changes(options)
    if options.data_dir and "data.data_dir" in dict(changes):
        raise ConfigError("--data_dir and --config.data.data_dir are the same; leave one out")
    report = chosen_report(options)
    labels = read_labels(pathlib.Path(options.real_labels)) if options.real_labels else None
    device_flags.apply(options, beside_training=True)
    checkpoint = open_checkpoint(
        path,
        data_dir=options.data_dir,
        batch_size=options.batch_size,
        ema=options.ema,
        changes=changes,
    )
    for note in checkpoint.notes:
        print(note, file=sys.stderr)
    if report is None and labels is None:
        result = evaluate_checkpoint(checkpoint)
        record: dict[str, object] = dataclasses.asdict(result)
        print(describe_result(result), flush=True)
    else:
        record = evaluate_images(checkpoint, path, report, labels)
    if plan is not None:
        attacked = []
        for scores in attack_checkpoint(checkpoint, plan):
            print(attacks.describe(scores), flush=True)
            attacked.append(scores)
        if not changes:
            attacks.keep(pathlib.Path(path), attacked)
        record["attacked"] = [dataclasses.asdict(scores) for scores in attacked]
    print(json.dumps(record))


def evaluate_checkpoint(checkpoint: Checkpoint) -> Scores:
    """Top-1, top-5 and loss of a checkpoint on the whole evaluation split."""
    step = parallel(
        steps.eval_step(checkpoint.functional, checkpoint.normalize),
        precision=checkpoint.config.train.precision,
    )
    batches = eval_batches(checkpoint.dataset, checkpoint.batch_size)
    with count_images(checkpoint, "evaluation") as on_batch:
        evaluation = evaluate(step, checkpoint.variables, batches, on_batch)
    return Scores.at_step(checkpoint.step, evaluation)


def chosen_report(options: flags.FlagValues) -> pathlib.Path | None:
    """The folder of --report.

    Raises:
      ConfigError: it exists, or matplotlib is not installed.
    """
    if not options.report:
        return None
    folder = check_new(options.report, "report")
    require_matplotlib("; or leave --report out")
    return folder


def evaluate_images(
    checkpoint: Checkpoint,
    path: str,
    folder: pathlib.Path | None,
    labels: list[list[int]] | None,
) -> dict[str, object]:
    """Evaluates a checkpoint image by image.

    Args:
      checkpoint: to evaluate.
      path: it is from here.
      folder: of the report, which does not exist yet; None for no report.
      labels: reassessed labels to score; None for none.

    Returns:
      The numbers of all images as JSON types.
    """
    numbers = [] if labels is None else image_numbers(checkpoint, len(labels))
    with count_images(checkpoint, "evaluation") as on_batch:
        outcomes = collect(checkpoint, on_batch)
    scores = outcomes.scores(checkpoint.step)
    print(describe_result(scores), flush=True)
    record, real = dataclasses.asdict(scores), None
    if labels is not None:
        predicted = network_classes(checkpoint, outcomes.predicted)
        real = score(labels, numbers, predicted)
        print(f"ReaL: top-1 {real.real_top1:.2f} % on {real.real_count} images with labels")
        record |= real._asdict()
    if folder is not None:
        record |= write_outcomes(checkpoint, path, folder, outcomes, real)
    return record


def write_outcomes(
    checkpoint: Checkpoint,
    path: str,
    folder: pathlib.Path,
    outcomes: Outcomes,
    real: RealScore | None,
) -> dict[str, Any]:
    """Writes the report, and returns its numbers of all images as JSON types."""
    split = checkpoint.config.data.eval_split
    images = f"{checkpoint.config.data.name}{f', {split}' if split else ''}"
    title = f"{checkpoint.config.network} of {path} on {images}"
    name = functools.partial(image_name, checkpoint)
    report = make_report(title, checkpoint.notes, checkpoint.step, outcomes, name, real)
    write_report(folder, report)
    error = report.calibration.error
    print(f"expected calibration error {100 * error:.2f} %\nwrote {folder / PAGE}", flush=True)
    return report.summary()


def attack_checkpoint(checkpoint: Checkpoint, plan: Plan) -> Iterator[AttackedScores]:
    """The same under an attack, for each of its budgets."""
    attacked_step = attacks.parallel_step(
        checkpoint.functional,
        checkpoint.normalize,
        targeted=plan.kind == "targeted",
        precision=checkpoint.config.train.precision,
    )
    batches = functools.partial(
        eval_batches, checkpoint.dataset, checkpoint.batch_size, with_index=True
    )

    def progress(budget: Budget) -> contextlib.AbstractContextManager[Callable[[int], object]]:
        text = f"{plan.kind}, eps {budget.epsilon:g}, {budget.steps} steps"
        return count_images(checkpoint, text)

    return attacks.run(
        attacked_step, checkpoint.variables, batches, plan, checkpoint.step, progress
    )


@contextlib.contextmanager
def count_images(checkpoint: Checkpoint, text: str) -> Iterator[Callable[[int], object]]:
    """Shows the progress of an evaluation on a terminal."""
    with tqdm(total=checkpoint.dataset.num_eval, unit="image", desc=text, disable=None) as bar:
        yield bar.update


if __name__ == "__main__":
    command_line.run(main, define_flags)
