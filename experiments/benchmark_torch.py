"""Measures networks of this repository beside those of timm in torch, on a CPU, in one run.

    python -m pip install torch timm
    python -m experiments.benchmark_torch [--networks=lrnet26,resnet26] [--timm=halonet26t]

Each network runs its forward pass (in evaluation mode) and one training step on random images of
one size, float32, in turn with the others, twice: the second run counts, because the threads of one
library still spin when the other begins. Both use all cores of the process. Ratios are to the first
network. A busy machine slows all networks alike, and processor time, which is that of all threads,
varies less. timm's HaloNet and BoTNet need images of 256 x 256. --torch_compile has `torch.compile`
compile timm's networks.

Without torch or timm, their networks are left out and the others are measured.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import flags

from experiments.bench import torch_networks
from experiments.bench.network_programs import (
    CLASSES,
    PASSES,
    compile_passes,
    describe_relations,
)
from experiments.cli import bench_flags, command_line
from experiments.config import ConfigError
from pallas_kernels.tools.timing import Timing, interleave, machine


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    bench_flags.define_networks(flag_values, "lrnet26,resnet26", batch_size=8, dtype="float32")
    flag_values.set_default("image_size", 256)
    flags.DEFINE_list(
        "timm", "halonet26t,botnet26t_256,resnet26", "Names of networks in timm.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "torch_compile", False, "Compile timm's networks.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "rounds", 5, "Runs of each program that count.", lower_bound=2, flag_values=flag_values
    )
    flags.DEFINE_string(
        "json", None, "Also write the figures to this file.", flag_values=flag_values
    )


def main(options: flags.FlagValues) -> None:
    """Measures the networks, and prints a table of each pass."""
    if jax.default_backend() != "cpu":
        raise ConfigError("benchmark_torch compares on CPUs; type JAX_PLATFORMS=cpu before it")
    size = {"batch_size": options.batch_size, "image_size": options.image_size}
    variants = bench_flags.chosen_networks(options)
    if not variants:
        raise ConfigError("--networks names no network; use for example --networks=lrnet26")
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    print(f"batch {options.batch_size}, {options.image_size}x{options.image_size}")
    relations = describe_relations(variants)
    print("\n".join(relations))
    absent = torch_networks.missing() if options.timm else None
    programs: dict[str, Mapping[str, Callable[[], Any]]] = {}
    for name, variant in variants.items():
        compiled = compile_passes(variant, **size)
        programs[name] = {kind: program.run for kind, program in compiled.items()}
    for name in () if absent else options.timm:
        programs[f"timm {name}"] = torch_networks.torch_passes(
            name, **size, classes=CLASSES, compiled=options.torch_compile
        )
    if absent:
        print(f"skipped {', '.join(options.timm)}: {absent}")
    results = {}
    for kind in PASSES:
        runs = {name: passes[kind] for name, passes in programs.items()}
        results[kind] = interleave(runs, options.rounds, warm=True)
        print(f"\n{describe(kind, results[kind], options.batch_size)}", flush=True)
    if options.json:
        figures = {kind: {n: vars(t) for n, t in rows.items()} for kind, rows in results.items()}
        settings = options.flag_values_dict()
        record = {"machine": machine(), **settings, "relations": relations, "results": figures}
        pathlib.Path(options.json).write_text(json.dumps(record, indent=2))


def describe(title: str, timings: Mapping[str, Timing], batch_size: int) -> str:
    """The timings of one pass as lines of text; ratios are to the first."""
    first = next(iter(timings.values()))
    columns = f"{'median ms':>10s} {'quartiles':>15s} {'ratio':>6s} {'CPU ms':>8s} {'ratio':>6s}"
    lines = [f"{title:20s} {columns} images / CPU second"]
    for name, time in timings.items():
        lines.append(
            f"{name:20s} {1e3 * time.median:10.1f} {1e3 * time.lower:7.1f}-{1e3 * time.upper:<7.1f}"
            f" {time.median / first.median:6.2f} {1e3 * time.cpu:8.1f} {time.cpu / first.cpu:6.2f}"
            f" {batch_size / time.cpu:19.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run(main, define_flags)
