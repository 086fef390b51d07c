"""Examines the kernels on the GPU of this machine, and writes what it found as a page.

    python -m experiments.gpu_report                    # docs/gpu/NAME.md, .json and pictures
    python -m experiments.gpu_report --parts=kernels,steps

NAME is that of the GPU. The parts are

    environment   versions, driver, GPU, what runs on it and why
    correctness   every kernel on all shapes and dtypes: the output, four gradients, their error
                  budgets, and whether a second call repeats them to the bit
    sanitizer     the kernels under NVIDIA's compute-sanitizer, where that is installed
    tune          the fastest tiles of each implementation's kernels, which are kept in tiles.json
    kernels       times of each layer beside what the memory and the arithmetic of this GPU allow,
                  beside xla, a dense 3x3 and a depthwise 7x7 convolution
    steps         training steps of whole networks: images per second, memory, the first step with
                  and without kept programs
    model         the same steps by the model of `experiments.step_model`, beside the clock
    quickstart    training steps on the GPU beside the same steps on the CPU, and a whole training

Each result is kept as soon as it is there. Rerun the same command to resume, or with --again to
measure anew. A part ends after --minutes, and the next run goes on with what is left.

Without an NVIDIA GPU the command says so and tries its parts on two small shapes, with the Pallas
kernels in interpret mode. Those times say nothing. The command needs jax, flax, optax, numpy and
orbax. Pictures need matplotlib. They can be drawn elsewhere, from the JSON file:

    python -m experiments.gpu_report --draw=docs/gpu/NAME.json

The exit code is 1 if a result is beyond its budget, is not repeated, or a part failed.
"""

import pathlib

from absl import flags

from experiments.bench import gpu_parts
from experiments.bench.gpu_parts import PARTS, Setting
from experiments.bench.kept_results import KeptResults, run_units
from experiments.cli import command_line
from experiments.config import ConfigError
from experiments.report import gpu_page
from experiments.run import device_settings


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_list("parts", list(PARTS), "Parts to run, in this order.", flag_values=flag_values)
    flags.DEFINE_string(
        "out", None, "Folder of the page (default: docs/gpu, or runs/gpu_report without a GPU).",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "batch_size", 128, "Images of a layer or a step.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_float(
        "minutes", 10.0, "Longest time of a part.", lower_bound=0.0, flag_values=flag_values
    )
    flags.DEFINE_boolean("again", False, "Measure these parts anew.", flag_values=flag_values)
    flags.DEFINE_string(
        "draw", None, "Write the page of this JSON file, and run nothing.", flag_values=flag_values
    )


def main(options: flags.FlagValues) -> int:
    """Runs the parts and writes the page; the exit code is 1 if something is wrong."""
    if options.draw is not None:
        kept = KeptResults.read(pathlib.Path(options.draw))
        return write_page(kept)
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        raise ConfigError(f"--parts has {', '.join(unknown)}; use {', '.join(PARTS)}")
    device_settings.share_gpu()
    setting = Setting.of_this_machine(options.batch_size)
    if setting.reason:
        print(f"NO GPU, INTERPRET MODE: {setting.reason}.\nSmall shapes, and no times that count.")
    default = "runs/gpu_report" if setting.reason else "docs/gpu"
    folder = pathlib.Path(options.out or default)
    kept = KeptResults.read(folder / f"{setting.name}.json")
    if options.again:
        kept.drop(options.parts)
    for part in options.parts:
        run_units(part, PARTS[part](setting), kept, seconds=60 * options.minutes)
        write_page(kept)
    return write_page(kept, verbose=True)


def write_page(kept: KeptResults, *, verbose: bool = False) -> int:
    """Writes the page; returns 1 if one of its results is wrong."""
    files = gpu_page.write(kept)
    wrong = gpu_parts.wrong_results(kept.results)
    if verbose:
        print("\n".join(["", *filter(None, [gpu_page.no_picture(kept)]), *map(str, files)]))
        print("\n".join(wrong) if wrong else "nothing is wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    command_line.run(main, define_flags)
