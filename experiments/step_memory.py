"""Reports the memory of training steps, compiled for a GPU that this machine need not have.

    python -m experiments.step_memory [--networks=resnet50,lrnet50,lrnet50:xla] [--gpu=h100]
        [--batch_size=128] [--remat=none,stem,blocks] [--table] [--bodies]

`lrnet50:xla` is lrnet50 with that implementation of the local relation. --remat compiles each
network under each of these policies, by default under its own. The ratios of an LR-Net are to the
ResNet of its depth under the same policy, where that is among the networks, and else to the first
network. --table prints Markdown. "kernels" are calls of Pallas kernels, and in brackets how many
of them differ.

Temporary memory is what XLA plans for activations and scratch, without parameters, images and the
workspace of cuDNN. It is exact, not measured. Milliseconds are those of a MODEL, not measured:
`experiments/bench/step_time.py`. The kernels of the local relation are compiled without their
bodies, on which neither depends. With --bodies, "compile" is what the first start on a GPU takes,
in seconds of processors, without autotuning. XLA compiles on all cores at once. The command needs
NVIDIA's compiler and no GPU:

    make inspect
    JAX_PLATFORMS=cpu PYTHONPATH=build/cuda python -m experiments.step_memory
"""

import typing

from absl import flags

from experiments.bench.compiled_step import PlannedStep, peer, plan_step, with_policies
from experiments.cli import bench_flags, command_line
from experiments.config import ConfigError
from experiments.report.table import Table
from lrnet_jax.variant import Remat
from pallas_kernels.tools import cross_compilation
from pallas_kernels.tools.cross_compilation import GPUS

Key = tuple[str, Remat]  # name of a network, and its policy
POLICIES: tuple[Remat, ...] = typing.get_args(Remat)
COLUMNS = {
    "network": 12, "remat": 6, "memory, GiB": 11, "its ratio": 9, "MODEL, ms": 9,
    "ratio of times": 14, "kernels": 7, "compile, CPU s": 14, "largest array": 26,
}  # fmt: skip


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    bench_flags.define_networks(
        flag_values, "resnet50,lrnet50,lrnet50:xla", batch_size=128, dtype="bfloat16"
    )
    flags.DEFINE_enum("gpu", "h100", list(GPUS), "GPU to compile for.", flag_values=flag_values)
    flags.DEFINE_list(
        "remat", [], f"Policies, of {', '.join(POLICIES)}; those of the networks by default.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "bodies", False, "Compile the bodies of the kernels too (minutes).", flag_values=flag_values
    )
    flags.DEFINE_boolean("table", False, "Print a table in Markdown.", flag_values=flag_values)


def main(options: flags.FlagValues) -> None:
    """Compiles the steps, and prints a line of each.

    Raises:
      ConfigError: the compiler is not installed, or a network or a policy does not exist.
    """
    unknown = [policy for policy in options.remat if policy not in POLICIES]
    if unknown:
        raise ConfigError(f"--remat has {', '.join(unknown)}; use {', '.join(POLICIES)}")
    cross_compilation.prepare()
    reason = cross_compilation.missing()
    if reason:
        raise ConfigError(f"cannot compile for a GPU: {reason}")
    variants = with_policies(bench_flags.chosen_networks(options), options.remat)
    gpu, side = GPUS[options.gpu], options.image_size
    print(f"{gpu.name}, batch {options.batch_size}, {side}x{side}, {options.dtype}")
    print("Milliseconds are those of a MODEL, not measured.\n")
    found: dict[Key, PlannedStep] = {}
    if not options.table:
        print(" ".join(f"{title:>{width}}" for title, width in COLUMNS.items()), flush=True)
    for key, variant in variants.items():
        found[key] = plan_step(variant, gpu, options.batch_size, side, bodies=options.bodies)
        if not options.table:
            line = zip(cells(found, key), COLUMNS.values(), strict=True)
            print(" ".join(f"{cell:>{width}}" for cell, width in line), flush=True)
    if options.table:
        rows = tuple(cells(found, key) for key in found)
        print(Table(tuple(COLUMNS), rows).markdown())


def cells(found: dict[Key, PlannedStep], key: Key) -> tuple[str, ...]:
    """A row: the step of a key, beside that of its peer under the same policy."""
    (name, policy), step = key, found[key]
    beside = found[peer(name, [other for other, same in found if same == policy]), policy]
    return (
        name,
        policy,
        f"{step.temp_bytes / 2**30:.2f}",
        f"{step.temp_bytes / beside.temp_bytes:.2f}",
        f"{step.milliseconds:.2f}",
        f"{step.milliseconds / beside.milliseconds:.2f}",
        f"{step.kernels} ({step.distinct})",
        f"{step.compile_seconds:.0f}",
        step.largest.kind,
    )


if __name__ == "__main__":
    command_line.run(main, define_flags)
