"""Measures time and memory of whole networks, in turn within one process.

    python -m experiments.benchmark_networks [--networks=resnet26,lrnet26] [--batch_size=2]

Each network runs its forward pass (in evaluation mode) and one training step on random images. The
times are of the whole step without input. Ratios are to the first network. A busy machine slows all
networks alike, so trust the ratios rather than the milliseconds. Temporary memory is what the
compiler reports, without parameters and images.
"""

import json
import pathlib

from absl import flags

from experiments.bench import network_programs
from experiments.cli import bench_flags, command_line
from pallas_kernels.tools.timing import machine


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    bench_flags.define_networks(flag_values, "resnet26,lrnet26", batch_size=2, dtype="float32")
    flags.DEFINE_integer(
        "rounds", 9, "Runs of each program that count.", lower_bound=2, flag_values=flag_values
    )
    flags.DEFINE_string(
        "json", None, "Also write the figures to this file.", flag_values=flag_values
    )


def main(options: flags.FlagValues) -> None:
    """Measures the networks, and prints a table of each pass."""
    variants = bench_flags.chosen_networks(options)
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    print(f"batch {options.batch_size}, {options.image_size}x{options.image_size}, {options.dtype}")
    relations = network_programs.describe_relations(variants)
    print("\n".join([*relations, ""]))
    compiled = {
        name: network_programs.compile_passes(
            variant, batch_size=options.batch_size, image_size=options.image_size
        )
        for name, variant in variants.items()
    }
    results = {}
    for kind in network_programs.PASSES:
        programs = {name: passes[kind] for name, passes in compiled.items()}
        measured = network_programs.measure(programs, options.rounds)
        results[kind] = {name: m.as_json() for name, m in measured.items()}
        print(f"{network_programs.describe_measurements(kind, measured)}\n")
    if options.json:
        settings = {**options.flag_values_dict(), "networks": ",".join(variants)}
        figures = {"machine": machine(), **settings, "relations": relations, "results": results}
        pathlib.Path(options.json).write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    command_line.run(main, define_flags)
