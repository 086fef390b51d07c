"""Measures how many images a second the input pipeline delivers, and what they cost.

    python -m experiments.benchmark_input [--data=imagenet2012 --data_dir=DIR] [--rate=2500]
    python -m experiments.benchmark_input --data=folder [--data_dir=DIR]
    python -m experiments.benchmark_input --memory [--batches=20000]

Without --data the command writes a file of its own, with photographs of the mean size and weight of
ImageNet's, and with --data=folder alone a folder of these. Each pipeline (see
`bench/input_pipelines.py`) runs in a process of its own. They take turns, one round each. A round
lasts from idle with full buffers to idle with full buffers, and the CPU seconds of all processes
and threads of the pipeline count. Images per second depend on what else the machine does, so trust
images per CPU second. torchvision and tf.data take part where they are installed.

--memory runs this package's pipeline alone, and prints the memory of all its processes.
"""

import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments.bench import input_pipelines, process_use
from experiments.bench.input_files import open_split
from experiments.bench.input_rates import measure_rates, memory_curve, rate_table
from experiments.cli import command_line
from experiments.config import ConfigError
from lrnet_jax.data.examples import Examples

ROUND_BATCHES, MEMORY_BATCHES = 20, 20_000


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string(
        "data", None,
        "A prepared data set, or folder for a folder of images; photographs of this package by "
        "default.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_string(
        "data_dir", None, "Folder of the prepared data sets, or of the images.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_list(
        "pipelines", None, "Pipelines to run; all that are installed by default.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "workers", os.cpu_count() or 1, "Workers of each pipeline.",
        lower_bound=0, flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "batch_size", 64, "Images of a batch.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "batches", None,
        f"Batches of a round ({ROUND_BATCHES} by default) or of --memory ({MEMORY_BATCHES}).",
        lower_bound=1, flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_integer("rounds", 5, "Number of rounds.", lower_bound=1, flag_values=flag_values)
    flags.DEFINE_list(
        "rate", "2500", "Images per second that the input must reach.", flag_values=flag_values
    )
    flags.DEFINE_boolean("memory", False, "Print the memory curve.", flag_values=flag_values)
    flags.DEFINE_string(
        "json", None, "Also write the figures to this file.", flag_values=flag_values
    )


def main(options: flags.FlagValues) -> None:
    """Prints the rates of the pipelines, or the memory of this package's pipeline.

    Raises:
      ConfigError: a flag has a bad value, or this system has no /proc.
    """
    if not process_use.PROC.exists():
        raise ConfigError("this command needs /proc, which this system does not have")
    names = chosen_pipelines(options.pipelines)
    rates = chosen_rates(options.rate)
    sizes = {"batch_size": options.batch_size, "workers": options.workers}
    figures: dict[str, Any] = {**sizes, "data": options.data or "photographs"}
    with tempfile.TemporaryDirectory() as folder:
        split = open_split(options.data, options.data_dir, pathlib.Path(folder))
        if options.memory:
            figures["memory"] = []
            for point in memory_curve(split, batches=options.batches or MEMORY_BATCHES, **sizes):
                figures["memory"].append(point)
                print(f"{point.batches:8d} batches  {point.bytes / 2**20:7.1f} MB", flush=True)
        else:
            results = measure_rates(
                split, runnable(names, split), rounds=options.rounds,
                batches=options.batches or ROUND_BATCHES, **sizes,
            )  # fmt: skip
            figures["results"] = [result._asdict() for result in results]
            print(rate_table(results, rates).markdown())
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


def chosen_pipelines(names: Sequence[str] | None) -> Sequence[str]:
    """The pipelines that --pipelines names, by default all.

    Raises:
      ConfigError: one does not exist.
    """
    known = input_pipelines.PIPELINES
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ConfigError(
            f"--pipelines has {', '.join(unknown)}, which is none of {', '.join(known)}"
        )
    return names or list(known)


def chosen_rates(texts: Sequence[str]) -> list[int]:
    """The numbers of --rate.

    Raises:
      ConfigError: one is not a whole number from 1 on.
    """
    for text in texts:
        if not text.isdecimal() or not int(text):
            raise ConfigError(f"--rate must be whole numbers such as 2500,5000; got {text!r}")
    return list(map(int, texts))


def runnable(names: Sequence[str], split: Examples) -> list[str]:
    """The pipelines that can run here; prints why others are left out."""
    reasons = {name: input_pipelines.left_out(name, split) for name in names}
    for name, reason in reasons.items():
        if reason:
            print(f"left out: {name}, {reason}", file=sys.stderr)
    return [name for name, reason in reasons.items() if not reason]


if __name__ == "__main__":
    command_line.run(main, define_flags)
