"""The result of a finished run: its file, and how it is printed."""

import json
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from experiments.run import pasteable
from experiments.run.scores import Scores
from lrnet_jax.training import checkpoints
from lrnet_jax.training.evaluation import Evaluation

FILE = "result.json"  # of a finished run, in its workdir


def describe_result(result: Evaluation) -> str:
    """An evaluation in a line."""
    return f"{describe_numbers(result)}  on {result.count} images"


def describe_numbers(result: Evaluation) -> str:
    """An evaluation in a line, without the number of images."""
    return f"top-1 {result.top1:.2f} %  top-5 {result.top5:.2f} %  loss {result.loss:.4f}"


def read_result(workdir: pathlib.Path) -> Scores | None:
    """The result of a finished run; None if the run is not finished."""
    path = workdir / FILE
    return Scores.from_dict(json.loads(path.read_text())) if path.exists() else None


def is_unfinished(path: str | pathlib.Path) -> bool:
    """Whether a path is of a run that has not reached its last step; an export is no run."""
    path = pathlib.Path(path)
    workdir = path.parent.parent if path.parent.name == checkpoints.FOLDER else path
    return (workdir / checkpoints.FOLDER).is_dir() and not (workdir / FILE).exists()


def known_scores(path: str | pathlib.Path, metadata: Mapping[str, Any]) -> Scores | None:
    """The scores of a checkpoint that are on record; None if there are none.

    Args:
      path: a workdir, a step directory or an export, from which the checkpoint was loaded.
      metadata: from `lrnet_jax.load_checkpoint`. An export keeps its scores there.
    """
    if metadata.get("scores") is not None:
        return Scores.from_dict(metadata["scores"])
    path = pathlib.Path(path)
    workdir = path.parent.parent if path.parent.name == checkpoints.FOLDER else path
    result = read_result(workdir)
    if result is None or result.step != metadata["step"]:
        return None
    # A run evaluates the averages of its weights where it keeps them.
    averages = metadata["config"]["train"]["ema_decay"] > 0
    return result if metadata["ema"] == averages else None


def print_summary(workdir: pathlib.Path, result: Scores) -> None:
    """Prints the last lines of a run: its result, its checkpoint, what to type next."""
    python = pasteable.python()
    print(
        f"final: {describe_result(result)}\n"
        f"checkpoint: {workdir / checkpoints.FOLDER / str(result.step)}\n"
        f"next: {pasteable.command('experiments.evaluate', [f'--run={workdir}'])}\n"
        f"curves: {python} -m pip install tensorboard && {python} -m tensorboard.main "
        f"--logdir={shlex.quote(str(workdir))}"
    )
