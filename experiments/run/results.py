"""The result of a finished run: its file, and how it is printed."""

import json
import pathlib
from typing import Any

from lrnet_jax.training import checkpoints

FILE = "result.json"  # of a finished run, in its workdir


def describe_result(result: dict[str, Any]) -> str:
    """An evaluation in a line."""
    return f"{describe_numbers(result)}  on {result['count']} images"


def describe_numbers(result: dict[str, Any]) -> str:
    """An evaluation in a line, without the number of images."""
    return f"top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %  loss {result['loss']:.4f}"


def read_result(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The result of a finished run; None if the run is not finished."""
    path = workdir / FILE
    return json.loads(path.read_text()) if path.exists() else None


def print_summary(workdir: pathlib.Path, result: dict[str, Any]) -> None:
    """Prints the last lines of a run: its result, its checkpoint, what to type next."""
    print(
        f"final: {describe_result(result)}\n"
        f"checkpoint: {workdir / checkpoints.FOLDER / str(result['step'])}\n"
        f"next: python -m experiments.evaluate --run={workdir}\n"
        f"      tensorboard --logdir={workdir}"
    )
