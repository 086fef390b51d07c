"""Registers, spills and instructions of the GPU kernels, on a machine without a GPU.

    python -m pallas_kernels.tools.instruction_counts [--gpu=h100] [--shape=lrnet50/res2]
        [--dtype=bfloat16] [--batch=128] [--kernels=forward,query,key] [--strip=R]
        [--implementation=jax_triton] [--table] [--plot=FILE]
    python -m pallas_kernels.tools.instruction_counts --faults --gpu=a100,h100,b200
        --shape='stem,lrnet*' --dtype=bfloat16,float32
    python -m pallas_kernels.tools.instruction_counts --compare --gpu=a100,h100,b200
        --shape='stem,lrnet50/*'

It compiles each kernel for the GPU, disassembles it and counts. An issue slot is one instruction of
one warp. "Per tap" is per (pixel, tap, group), and taps outside the image count too. A kernel has
code for several border cases: for strips away from the left and right border, and for those at it.
The average is over all programs, each with its border case and the window rows that it needs. No
program of the average needs the exact pass. The bounds are a MODEL from data-sheet rates, not a
time: the largest says which resource would limit a kernel that did everything else for free.

The exit code is 1 if a kernel spills registers, or uses shared memory or a barrier in a loop over
taps. `--faults` looks for these alone, and prints a line for each kernel and their number.
`--compare` prints the issue slots per tap of both implementations side by side. All this needs
`make inspect`: NVIDIA's compiler as wheels, no driver.
"""

import argparse
import importlib.util
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from pallas_kernels.tools import cross_compilation

cross_compilation.prepare()

import jax.numpy as jnp  # noqa: E402

from pallas_kernels.jax_triton import stack  # noqa: E402
from pallas_kernels.pallas.tiling import Tile  # noqa: E402
from pallas_kernels.tools.cross_compilation import GPUS, Gpu  # noqa: E402
from pallas_kernels.tools.kernel_programs import KERNELS  # noqa: E402
from pallas_kernels.tools.kernel_report import PARTS, Report, bounds, report  # noqa: E402
from pallas_kernels.tools.shapes import Shape, select  # noqa: E402

DTYPES = ("bfloat16", "float16", "float32")
IMPLEMENTATIONS = ("pallas", "jax_triton")
NOUNS = {"kernels": "kernel", "gpu": "GPU", "dtype": "dtype"}


def show(gpu: Gpu, shape: Shape, dtype: Any, name: str, found: Report) -> None:
    """Prints one report."""
    kernel = found.kernel
    print(f"{kernel.name}  strip {found.tile.strip}, {kernel.warps} warps, {kernel.grid} blocks")
    print(
        f"  {kernel.registers} registers, {kernel.spills} bytes spilled, {kernel.shared} bytes of "
        f"shared memory, {kernel.resident_warps(gpu)} warps per SM"
    )
    print(f"  {found.use.rows:.2f} of {shape.spec.kernel_size[0]} window rows per program")
    for i, (loop, case) in enumerate(zip(found.loops, found.use.cases, strict=True)):
        count = loop.last - loop.first + 1
        classes = ", ".join(f"{k} {v}" for k, v in found.code.classes(loop).items())
        print(
            f"  strips {_ranges(case.strips)}{' with masks' if case.columns is None else ''}, "
            f"{found.use.shares[i]:.1%} of the programs: {found.costs[i]:.2f} per tap, of these "
            f"{count * found.use.rows / found.taps:.2f} in the loop over rows: {classes}"
        )
    print(f"  average {found.average:.2f} issue slots per tap")
    model = bounds(gpu, shape, dtype, found, name)
    print("  MODEL, us: " + ", ".join(f"{k} {v:.1f}" for k, v in model._asdict().items()))
    for fault in found.faults:
        print(f"  FAULT: {fault}")


def _ranges(strips: Sequence[int]) -> str:
    """For example "3", "3 to 7", or "3, 5" where numbers are missing between."""
    first, last = strips[0], strips[-1]
    if last - first == len(strips) - 1 > 0:
        return f"{first} to {last}"
    return ", ".join(str(x) for x in strips)


TABLE = (
    "| shape | kernel | strip | registers | spilled | warps per SM | issue slots per tap | of "
    "these arithmetic | MODEL: issue, us | MODEL: DRAM, us |\n|" + " --- |" * 10
)


def row(gpu: Gpu, shape: Shape, dtype: Any, name: str, found: Report) -> str:
    """One report as a row of `TABLE`."""
    model = bounds(gpu, shape, dtype, found, name)
    cells = (
        shape.name,
        name,
        found.tile.strip,
        found.kernel.registers,
        found.kernel.spills,
        found.kernel.resident_warps(gpu),
        f"{found.average:.2f}",
        f"{found.parts['arithmetic']:.2f}",
        f"{model.issue:.0f}",
        f"{model.dram:.0f}",
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def plot(file: str, title: str, reports: dict[str, Report]) -> None:
    """Draws what each kernel spends its issue slots on."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.22 * len(reports)), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(reports)
    for part, colour in zip(
        PARTS, ("#30638e", "#d1495b", "#edae49", "#66a182", "#9a9a9a"), strict=True
    ):
        widths = [found.parts[part] for found in reports.values()]
        axes.barh(list(reports), widths, left=left, label=part, color=colour)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("issue slots per (pixel, tap, group), counted in machine code")
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    # No date, version or random name in the picture, so that only counts change it.
    origin = {"Date": None, "Creator": None} if file.endswith(".svg") else None
    with matplotlib.rc_context({"svg.hashsalt": "inspect"}):
        figure.savefig(file, metadata=origin, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    options = _parse(arguments)
    reason = cross_compilation.missing()
    if options.implementation == "jax_triton" or options.compare:
        reason = stack.missing() or reason
    if reason:
        print(f"cannot compile for a GPU: {reason}", file=sys.stderr)
        return 2
    if options.faults:
        return int(_count_faults(options) > 0)
    if options.compare:
        return int(sum(_compare(options, dtype) for dtype in options.dtype) > 0)
    faults = [
        _count(options, gpu, dtype) for gpu, dtype in itertools.product(options.gpu, options.dtype)
    ]
    return int(sum(faults) > 0)


def _count(options: argparse.Namespace, gpu: Gpu, dtype: str) -> int:
    """Prints, and draws, the kernels for one GPU and dtype; the number of faults."""
    title, reports = f"{gpu.name}, batch {options.batch}, {dtype}", {}
    if options.table:
        print(f"{title}\n\n{TABLE}")
    for shape in _as_run(options, dtype):
        if not options.table:
            print(f"{shape.name}: {title}")
        for name in options.kernels:
            tile, implementation = _tile(options), options.implementation
            found = report(gpu, shape, jnp.dtype(dtype), name, tile, implementation)
            reports[f"{shape.name} {name}"] = found
            if options.table:
                print(row(gpu, shape, dtype, name, found), flush=True)
            else:
                show(gpu, shape, dtype, name, found)
    if options.plot:
        plot(options.plot, title, reports)
    return sum(len(found.faults) for found in reports.values())


def _compare(options: argparse.Namespace, dtype: str) -> int:
    """Prints the slots of both implementations for all GPUs; the number of faults."""
    print(f"Issue slots per tap of {' and '.join(IMPLEMENTATIONS)}, and the second by the first")
    print(f"(batch {options.batch}, {dtype}):\n")
    print(f"| shape | kernel | {' | '.join(gpu.name for gpu in options.gpu)} |")
    print("|" + " --- |" * (2 + len(options.gpu)), flush=True)
    faults = 0
    for shape, name in itertools.product(_as_run(options, dtype), options.kernels):
        cells = [shape.name, name]
        for gpu in options.gpu:
            both = [
                report(gpu, shape, jnp.dtype(dtype), name, _tile(options), implementation)
                for implementation in IMPLEMENTATIONS
            ]
            faults += sum(len(found.faults) for found in both)
            pallas, triton = (found.average for found in both)
            cells.append(f"{pallas:.2f}, {triton:.2f}: {triton / pallas:.2f}")
        print(f"| {' | '.join(cells)} |", flush=True)
    return faults


def _as_run(options: argparse.Namespace, dtype: str) -> list[Shape]:
    return [shape.as_run(dtype) for shape in options.shape]


def _tile(options: argparse.Namespace) -> Tile | None:
    return Tile(options.strip) if options.strip else None


def _count_faults(options: argparse.Namespace) -> int:
    """Prints a line for each kernel, and how many have a fault."""
    kernels = faulty = 0
    for gpu, dtype, shape, name in itertools.product(
        options.gpu, options.dtype, options.shape, options.kernels
    ):
        shape = shape.as_run(dtype)
        found = report(gpu, shape, jnp.dtype(dtype), name, _tile(options), options.implementation)
        kernels += 1
        faulty += bool(found.faults)
        print(
            f"{gpu.name} {dtype} {shape.name} {name}: {found.kernel.registers} registers, "
            f"{found.kernel.spills} bytes spilled"
            + "".join(f"; FAULT: {fault}" for fault in found.faults),
            flush=True,
        )
    print(f"{kernels} kernels of {options.implementation}, {faulty} with a fault")
    return faulty


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with the GPUs, dtypes, shapes and kernels that they name as lists."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for option, known in (("kernels", KERNELS), ("gpu", tuple(GPUS)), ("dtype", DTYPES)):
        names = getattr(options, option).split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            noun, all_names = NOUNS[option], ", ".join(known)
            parser.error(f"--{option}: no {noun} {unknown[0]!r}; there are {all_names}")
        setattr(options, option, names)
    options.gpu = [GPUS[name] for name in options.gpu]
    try:
        options.shape = [shape.with_batch(options.batch) for shape in select(options.shape)]
    except ValueError as error:
        parser.error(str(error))
    if options.plot and len(options.gpu) * len(options.dtype) > 1:
        parser.error("--plot draws one GPU and one dtype; give one of each")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib; python -m pip install matplotlib")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--implementation", default="pallas", choices=IMPLEMENTATIONS)
    parser.add_argument("--gpu", default="h100", help=f"of {', '.join(GPUS)}; with commas")
    parser.add_argument("--shape", default="lrnet50/res2", help="names or patterns, with commas")
    parser.add_argument("--dtype", default="bfloat16", help=f"of {', '.join(DTYPES)}; with commas")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--kernels", default=",".join(KERNELS))
    parser.add_argument("--strip", type=int, help="pixels per lane, instead of the tile chosen")
    parser.add_argument("--faults", action="store_true", help="spills and other faults alone")
    parser.add_argument("--compare", action="store_true", help="both implementations, a table")
    parser.add_argument("--table", action="store_true", help="Markdown, a row per kernel")
    parser.add_argument("--plot", metavar="FILE", help="draw what the slots go into (matplotlib)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
