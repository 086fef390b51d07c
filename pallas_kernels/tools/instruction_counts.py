"""Registers, spills and instructions of the GPU kernels, on a machine without a GPU.

    python -m pallas_kernels.tools.instruction_counts [--gpu=h100] [--shape=lrnet50/res2]
        [--dtype=bfloat16] [--batch=128] [--kernels=forward,query,key] [--strip=R]
        [--table] [--plot=FILE]

Compiles each kernel for the GPU, disassembles it and counts. An issue slot is one instruction of
one warp; "per tap" is per (pixel, tap, group), taps outside the image among them. A kernel has code
for several forms of strips: those away from the left and right border, those at it. The average is
over all programs, each with its form and the window rows that it needs; none needs the exact pass.
The bounds are a MODEL from data-sheet rates, not a time: the largest says which resource would
limit a kernel that did everything else for free.

Exit code 1 if a kernel spills registers, or uses shared memory or a barrier in a loop over taps.
Needs `pip install 'lrnet-jax[inspect]'` (NVIDIA's compiler as wheels, no driver).
"""

import argparse
import collections
import dataclasses
import importlib.util
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from pallas_kernels.tools import cross_compilation

cross_compilation.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from pallas_kernels.pallas import key_strip, output_strip, query_kernel  # noqa: E402
from pallas_kernels.pallas.problem import Problem  # noqa: E402
from pallas_kernels.pallas.strips import BorderCase  # noqa: E402
from pallas_kernels.pallas.tiling import Tile  # noqa: E402
from pallas_kernels.tools.cross_compilation import GPUS, Gpu, Kernel  # noqa: E402
from pallas_kernels.tools.kernel_programs import KERNELS, program  # noqa: E402
from pallas_kernels.tools.sass import Code, Loop  # noqa: E402
from pallas_kernels.tools.shapes import Shape, select  # noqa: E402

PARTS: dict[str, tuple[str, ...]] = {
    "arithmetic": ("fma", "exp"),
    "widening, addresses": ("integer", "convert"),
    "loads, stores": ("global",),
    "control": ("compare", "move", "constant", "branch"),
    "outside the loop over rows": (),
}
"""What issue slots are spent on -> classes of instructions in the loop over rows."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What was counted in one kernel.

    Attributes:
      kernel: as compiled.
      tile: how the problem was cut.
      code: its machine code.
      taps: (pixel, tap) pairs of one lane and turn.
      use: how its programs use it.
      others: machine code of the kernels that XLA adds around it, by name.
    """

    kernel: Kernel
    tile: Tile
    code: Code
    taps: float
    use: "Use"
    others: dict[str, Code]

    @property
    def loops(self) -> list[Loop]:
        """The loop over window rows of each form."""
        inner = [loop for loop in self.code.loops if loop.innermost]
        largest = sorted(inner, key=lambda loop: loop.last - loop.first)[-len(self.use.forms) :]

        def arithmetic(loop: Loop) -> tuple[int, int]:
            return self.code.classes(loop).get("fma", 0), loop.last - loop.first

        # Forms with more pairs of pixel and tap have more of it; masks make the difference else.
        order = sorted(range(len(self.use.forms)), key=lambda i: self.use.weights[i])
        found = dict(zip(order, sorted(largest, key=arithmetic), strict=True))
        return [found[i] for i in range(len(order))]

    @property
    def costs(self) -> list[float]:
        """Issue slots per (pixel, tap, group) of a program that needs one form, for each form."""
        paths = self.code.paths(self.use.rows, self.use.turns)
        loops = frozenset(self.loops)
        return [
            min(count for way, count in paths.items() if way & loops == {loop}) / self.taps
            for loop in self.loops
        ]

    @property
    def average(self) -> float:
        """Issue slots per (pixel, tap, group) over all programs."""
        return sum(x * cost for x, cost in zip(self.use.shares, self.costs, strict=True))

    @property
    def classes(self) -> dict[str, float]:
        """Instructions per tap of the loop over window rows, by class, over all programs."""
        found: dict[str, float] = collections.defaultdict(float)
        for loop, share in zip(self.loops, self.use.shares, strict=True):
            for kind, count in self.code.classes(loop).items():
                found[kind] += share * count * self.use.rows / self.taps
        return found

    @property
    def parts(self) -> dict[str, float]:
        """The average, by what the slots are spent on."""
        found = dict.fromkeys(PARTS, 0.0)
        for kind, count in self.classes.items():
            part = next((part for part, kinds in PARTS.items() if kind in kinds), "control")
            found[part] += count
        found["outside the loop over rows"] = self.average - sum(found.values())
        return found

    @property
    def faults(self) -> list[str]:
        """What a kernel must not have."""
        found = []
        if self.kernel.spills:
            found.append(f"{self.kernel.spills} bytes of registers spilled")
        for loop in self.code.loops:
            classes = self.code.classes(loop)
            found += [
                f"{name} instructions in a loop over taps"
                for name in ("shared", "barrier", "spill", "atomic")
                if loop.innermost and name in classes
            ]
        found += [
            f"atomics in {name}, so runs would not repeat bit for bit"
            for name, code in {self.kernel.name: self.code, **self.others}.items()
            if "atomic" in code.classes()
        ]
        return found


def report(gpu: Gpu, shape: Shape, dtype: Any, name: str, tile: Tile | None = None) -> Report:
    """Compiles and counts one kernel.

    Args:
      gpu: which to compile for.
      shape: the problem.
      dtype: of all arrays but the prior's copy.
      name: "forward", "query" or "key".
      tile: None for the one that would be used.
    """
    problem, tile, function, avals = program(shape, dtype, name, tile)
    kernels = cross_compilation.kernels(gpu, function, *avals)
    [kernel] = [x for x in kernels if x.name.startswith("local_relation")]
    others = {x.name: Code(x.sass) for x in kernels if x is not kernel}
    (kh, kw), s = problem.spec.kernel_size, problem.spec.stride
    taps = tile.strip * kh * kw / (s * s if name == "key" else 1)
    return Report(kernel, tile, Code(kernel.sass), taps, use(problem, tile, name), others)


class Use(NamedTuple):
    """How the programs of a kernel use its code.

    Attributes:
      forms: of strips.
      weights: for each form (pixel, tap) pairs of a window row, and whether there are masks.
      shares: of programs that run each form.
      rows: trips of the loop over window rows, on average.
      turns: strips that a lane takes, one after the other.
    """

    forms: list[BorderCase]
    weights: list[tuple[int, bool]]
    shares: list[float]
    rows: float
    turns: int


def use(problem: Problem, tile: Tile, name: str) -> Use:
    """Counts what every program of a kernel does."""
    turns, rows = 1, output_strip.window_rows
    columns = output_strip.window_columns(problem, tile.strip)
    if name == "forward":
        strips, forms = output_strip.output_strips(problem, tile, problem.groups * problem.chunks)
    elif name == "query":
        strips, forms, rounds = query_kernel.query_strips(problem, tile)
        turns = rounds * strips.parts
    else:
        strips, forms = key_strip.key_strips(problem, tile)
        columns = key_strip.output_columns(problem, tile.strip)
        rows = key_strip.output_rows
    first = jnp.arange(0, strips.lanes, tile.lanes, dtype=jnp.int32)
    start, end = jax.vmap(lambda x: rows(problem, strips, x))(first)
    shares = [len(form.strips) / strips.strips_per_row for form in forms]
    weights = [
        (sum(len(users) for users in form.existing(columns).values()), form.columns is None)
        for form in forms
    ]
    return Use(forms, weights, shares, float((end - start).mean()), turns)


def bounds(gpu: Gpu, shape: Shape, dtype: Any, found: Report, name: str) -> dict[str, float]:
    """A model: microseconds that each resource alone would need, from data-sheet rates."""
    batch, ho, wo, groups, _ = shape.query
    taps = batch * ho * wo * groups * shape.spec.taps
    clocks = gpu.cores * gpu.clock * 1e3  # of all SMs, per microsecond
    per_tap = found.classes
    item = jnp.dtype(dtype).itemsize
    query, key, value, out = (
        math.prod(x) * item for x in (shape.query, shape.key, shape.value, shape.out)
    )
    number = math.prod(shape.query[:4]) * 4
    traffic = {
        "forward": query + key + value + out + 2 * number,
        "query": 2 * query + key + value + 2 * out + 3 * number,
        "key": query + 2 * key + 2 * value + out + 3 * number,
    }[name]
    return {
        "issue": found.average * taps / 32 / (4 * clocks),
        "fma": per_tap["fma"] * taps / (gpu.lanes * clocks),
        "exp": per_tap["exp"] * taps / (16 * clocks),
        "loads": per_tap["global"] * taps / 32 / clocks,
        "dram": traffic / gpu.bandwidth * 1e6,
    }


def show(gpu: Gpu, shape: Shape, dtype: Any, name: str, found: Report) -> None:
    """Prints one report."""
    kernel = found.kernel
    print(f"{kernel.name}  strip {found.tile.strip}, {kernel.warps} warps, {kernel.grid} blocks")
    print(
        f"  {kernel.registers} registers, {kernel.spills} bytes spilled, {kernel.shared} bytes of "
        f"shared memory, {kernel.resident_warps(gpu)} warps per SM"
    )
    print(f"  {found.use.rows:.2f} of {shape.spec.kernel_size[0]} window rows per program")
    for i, (loop, form) in enumerate(zip(found.loops, found.use.forms, strict=True)):
        count = loop.last - loop.first + 1
        first, last, alone = form.strips[0], form.strips[-1], len(form.strips)
        near = last - first == alone - 1 > 0
        names = f"{first} to {last}" if near else ", ".join(str(x) for x in form.strips)
        classes = ", ".join(f"{k} {v}" for k, v in found.code.classes(loop).items())
        print(
            f"  strips {names}{' with masks' if form.columns is None else ''}, "
            f"{found.use.shares[i]:.1%} of the programs: {found.costs[i]:.2f} per tap, of these "
            f"{count * found.use.rows / found.taps:.2f} in the loop over rows: {classes}"
        )
    print(f"  average {found.average:.2f} issue slots per tap")
    model = bounds(gpu, shape, dtype, found, name)
    print("  MODEL, us: " + ", ".join(f"{k} {v:.1f}" for k, v in model.items()))
    for fault in found.faults:
        print(f"  FAULT: {fault}")


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
        f"{model['issue']:.0f}",
        f"{model['dram']:.0f}",
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", default="h100", choices=GPUS)
    parser.add_argument("--shape", default="lrnet50/res2", help="names or patterns, with commas")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--kernels", default=",".join(KERNELS))
    parser.add_argument("--strip", type=int, help="pixels per lane, instead of the tile chosen")
    parser.add_argument("--table", action="store_true", help="Markdown, a row per kernel")
    parser.add_argument("--plot", metavar="FILE", help="draw what the slots go into (matplotlib)")
    options = parser.parse_args(arguments)
    try:
        shapes = [shape.with_batch(options.batch) for shape in select(options.shape)]
    except ValueError as error:
        parser.error(str(error))
    reason = cross_compilation.missing()
    if reason:
        print(f"cannot inspect: {reason}", file=sys.stderr)
        return 2
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib; pip install 'lrnet-jax[figures]'")
    gpu, reports = GPUS[options.gpu], {}
    title = f"{gpu.name}, batch {options.batch}, {options.dtype}"
    if options.table:
        print(f"{title}\n\n{TABLE}")
    for shape in shapes:
        if not options.table:
            print(f"{shape.name}: {title}")
        for name in options.kernels.split(","):
            tile = Tile(options.strip) if options.strip else None
            found = report(gpu, shape, jnp.dtype(options.dtype), name, tile)
            if options.table:
                print(row(gpu, shape, options.dtype, name, found), flush=True)
            else:
                show(gpu, shape, options.dtype, name, found)
            reports[f"{shape.name} {name}"] = found
    if options.plot:
        plot(options.plot, title, reports)
    return int(any(found.faults for found in reports.values()))


if __name__ == "__main__":
    sys.exit(main())
