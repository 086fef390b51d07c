"""Models the time of training steps on a GPU that this machine need not have, by kernel and stage.

    python -m experiments.step_model [--networks=resnet50,lrnet50] [--gpu=a100|h100|h200|b200]
        [--batch_size=128] [--remat=none|stem|blocks] [--plot=FILE]

The times are those of a MODEL and not measured: every kernel of the compiled program costs the
larger of its DRAM traffic and its arithmetic. `experiments/bench/step_time.py` has the assumptions.
Temporary memory is XLA's own plan, and exact. The command needs `make inspect`, see
`experiments.step_memory`.
"""

import dataclasses
import pathlib

from absl import flags

from experiments.bench import step_time
from experiments.bench.compiled_step import plan_step
from experiments.bench.step_time import Cost
from experiments.cli import bench_flags, command_line
from experiments.config import ConfigError
from pallas_kernels.tools import cross_compilation
from pallas_kernels.tools.cross_compilation import GPUS


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    bench_flags.define_networks(flag_values, "resnet50,lrnet50", batch_size=128, dtype="bfloat16")
    flags.DEFINE_enum("gpu", "h100", list(GPUS), "GPU to compile for.", flag_values=flag_values)
    flags.DEFINE_enum(
        "remat", None, ("none", "stem", "blocks"),
        "What all networks compute again in the backward pass; theirs by default.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_string("plot", None, "File for a picture.", flag_values=flag_values)


def main(options: flags.FlagValues) -> None:
    """Compiles the step of each network, and prints the modelled times.

    Raises:
      ConfigError: the compiler is not installed, or a network does not exist.
    """
    cross_compilation.prepare()
    reason = cross_compilation.missing()
    if reason:
        raise ConfigError(f"cannot compile for a GPU: {reason}")
    gpu, side = GPUS[options.gpu], options.image_size
    costs, memory = {}, {}
    for name, variant in bench_flags.chosen_networks(options).items():
        if options.remat is not None:
            variant = dataclasses.replace(variant, remat=options.remat)
        step = plan_step(variant, gpu, options.batch_size, side)
        memory[name], costs[name] = step.temp_bytes, step.costs
    print(f"MODEL, not measured: {gpu.name}, batch {options.batch_size}, {side}x{side}, ", end="")
    print(options.dtype)
    print(describe(costs, memory))
    if options.plot:
        plot(costs, f"MODEL of a training step: {gpu.name}", pathlib.Path(options.plot))


def describe(costs: dict[str, list[Cost]], memory: dict[str, int]) -> str:
    """Modelled milliseconds by class of kernel and by stage, and bytes of temporary memory."""
    lines = [f"{'':20}" + "".join(f"{name:>14}" for name in costs)]
    for by in ("kind", "stage"):
        sums = {name: step_time.milliseconds(found, by) for name, found in costs.items()}
        rows = sorted({row for found in sums.values() for row in found}, key=_order)
        for row in rows:
            cells = "".join(f"{found.get(row, 0.0):11.2f} ms" for found in sums.values())
            lines.append(f"{row:20}{cells}")
        lines.append("")
    totals = [1e3 * sum(cost.seconds for cost in found) for found in costs.values()]
    sizes = list(memory.values())
    for row, numbers, unit in (
        ("step", totals, "ms"),
        ("memory", [s / 2**30 for s in sizes], "GiB"),
    ):
        lines.append(f"{row:20}" + "".join(f"{x:{13 - len(unit)}.2f} {unit}" for x in numbers))
        lines.append(f"{'ratio':20}" + "".join(f"{x / numbers[0]:14.2f}" for x in numbers))
    return "\n".join(lines)


def plot(costs: dict[str, list[Cost]], title: str, path: pathlib.Path) -> None:
    """Draws a bar of modelled milliseconds for each network, by class of kernel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.8 + 0.6 * len(costs)), layout="constrained")
    axes = figure.subplots()
    names = list(costs)
    starts = [0.0] * len(names)
    for kind in step_time.CLASSES:
        widths = [step_time.milliseconds(costs[name], "kind").get(kind, 0.0) for name in names]
        axes.barh(names, widths, left=starts, label=kind)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("modelled milliseconds, not measured")
    axes.set_title(title)
    figure.legend(ncols=4, fontsize="small", loc="outside lower center")
    figure.savefig(path)


def _order(row: str) -> tuple[int, str]:
    known = [*step_time.CLASSES, "stem"]
    return (known.index(row), "") if row in known else (len(known) + (row == "rest"), row)


if __name__ == "__main__":
    command_line.run(main, define_flags)
