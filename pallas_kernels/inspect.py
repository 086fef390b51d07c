"""Registers, spills and instructions of the GPU kernels, on a machine without a GPU.

    python -m pallas_kernels.inspect [--gpu=h100] [--shape=lrnet50/res2] [--dtype=bfloat16]
        [--batch=128] [--kernels=forward,query,key] [--strip=R]

Compiles each kernel for the GPU, disassembles it and counts. An issue slot is one instruction of
one warp; "per tap" is per (pixel, tap, group). A path is one way through the kernel, loops counted
with their trips; the fewest belong to programs away from the left and right border, then come
those at it, then those that need the exact pass. The bounds are a MODEL from data-sheet rates, not
a time: the largest says which resource would limit a kernel that did everything else for free.

Exit code 1 if a kernel spills registers, or uses shared memory or a barrier in a loop over taps.
Needs `pip install 'lrnet-jax[inspect]'` (NVIDIA's compiler as wheels, no driver).
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from pallas_kernels import gpu_compile

gpu_compile.prepare()

import jax.numpy as jnp  # noqa: E402

from pallas_kernels import gpu_forward, gpu_key_gradient  # noqa: E402
from pallas_kernels.gpu_compile import GPUS, Gpu, Kernel  # noqa: E402
from pallas_kernels.gpu_lanes import Strips  # noqa: E402
from pallas_kernels.gpu_problem import Problem  # noqa: E402
from pallas_kernels.gpu_programs import KERNELS, program  # noqa: E402
from pallas_kernels.sass import Code  # noqa: E402
from pallas_kernels.shapes import SHAPES, Shape  # noqa: E402
from pallas_kernels.tiling import Tile  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Report:
    """What was counted in one kernel.

    Attributes:
      kernel: as compiled.
      tile: how the problem was cut.
      code: its machine code.
      rows: trips of the loop over window rows, on average.
      taps: (pixel, tap) pairs of one lane.
      free: share of programs without a left or right border; None if all have one.
      others: machine code of the kernels that XLA adds around it, by name.
    """

    kernel: Kernel
    tile: Tile
    code: Code
    rows: float
    taps: float
    free: float | None
    others: dict[str, Code]

    @property
    def paths(self) -> list[float]:
        """Issue slots per (pixel, tap, group) on each way through the kernel, fewest first.

        Outer loops count once: of the exact pass, which goes from pixel to pixel, one pixel.
        """
        return [count / self.taps for count in self.code.paths(self.rows)]

    @property
    def average(self) -> float:
        """Issue slots per (pixel, tap, group) over all programs that need no exact pass."""
        # The shortest ways take the exact pass instead of the unrolled one, or turn round at once.
        paths = [x for x in self.paths if x > self.paths[-1] / 2]
        if self.free is None:
            return paths[0]
        # Ways that differ by a few instructions outside the loops are one.
        border = [x for x in paths if x > 1.02 * paths[0]] or paths
        return self.free * paths[0] + (1 - self.free) * border[0]

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
    kernels = gpu_compile.kernels(gpu, function, *avals)
    [kernel] = [x for x in kernels if x.name.startswith("local_relation")]
    others = {x.name: Code(x.sass) for x in kernels if x is not kernel}
    (kh, kw), s = problem.spec.kernel_size, problem.spec.stride
    rows, taps = float(kh), float(tile.strip * kh * kw)
    if name == "key" and s > 1:
        reach = (kh - 1) * problem.spec.dilation
        rows = reach // s + 1
        if problem.height % s == 0:  # the kernel sorts rows by what looks at them
            rows = sum((reach - offset) // s + 1 for offset in range(s)) / s
        taps /= s * s
    share = free_share(problem, tile, name)
    return Report(kernel, tile, Code(kernel.sass), rows, taps, share, others)


def free_share(problem: Problem, tile: Tile, name: str) -> float | None:
    """The share of programs that run without masks, by counting them; None if none ever does."""
    if not problem.softmax:
        return None
    if name == "key":
        strips = Strips(problem.height, problem.width, tile.strip, problem.groups, 1)
        low, high = gpu_key_gradient.key_strip_range(problem, tile.strip)
    else:
        units = problem.groups * (problem.chunks if name == "forward" else 1)
        strips = Strips(*problem.out_size, tile.strip, units, 1)
        low, high = gpu_forward.strip_range(problem, tile.strip)
    if low > high:
        return None
    column = strips.units * strips.rows
    programs = -(-strips.lanes // tile.lanes)
    free = 0
    for first in range(0, strips.lanes, tile.lanes):
        last = min(first + tile.lanes, strips.lanes) - 1
        free += low <= first // column and last // column <= high
    return free / programs


def bounds(gpu: Gpu, shape: Shape, dtype: Any, found: Report, name: str) -> dict[str, float]:
    """A model: microseconds that each resource alone would need, from data-sheet rates."""
    batch, ho, wo, groups, _ = shape.query
    taps = batch * ho * wo * groups * shape.spec.taps
    clocks = gpu.cores * gpu.clock * 1e3  # of all SMs, per microsecond
    inner = [found.code.classes(loop) for loop in found.code.loops if loop.innermost]
    largest = max(sum(classes.values()) for classes in inner)
    # The loop that most programs run: the smallest but for the one that looks for a maximum.
    share = min((x for x in inner if sum(x.values()) > largest / 2), key=lambda x: sum(x.values()))
    per_tap = found.rows / found.taps
    item = jnp.dtype(dtype).itemsize
    query, key, value, out = (
        _size(x) * item for x in (shape.query, shape.key, shape.value, shape.out)
    )
    number = _size(shape.query[:4]) * 4
    traffic = {
        "forward": query + key + value + out + 2 * number,
        "query": 2 * query + key + value + 2 * out + 3 * number,
        "key": query + 2 * key + 2 * value + out + 3 * number,
    }[name]
    return {
        "issue": found.average * taps / 32 / (4 * clocks),
        "fma": share.get("fma", 0) * per_tap * taps / (gpu.lanes * clocks),
        "exp": share.get("exp", 0) * per_tap * taps / (16 * clocks),
        "loads": share.get("global", 0) * per_tap * taps / 32 / clocks,
        "dram": traffic / gpu.bandwidth * 1e6,
    }


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def show(gpu: Gpu, shape: Shape, dtype: Any, name: str, found: Report) -> None:
    """Prints one report."""
    kernel = found.kernel
    print(f"{kernel.name}  strip {found.tile.strip}, {kernel.warps} warps, {kernel.grid} blocks")
    print(
        f"  {kernel.registers} registers, {kernel.spills} bytes spilled, {kernel.shared} bytes of "
        f"shared memory, {kernel.resident_warps} warps per SM"
    )
    for loop in found.code.loops:
        if loop.innermost:
            count = loop.last - loop.first + 1
            classes = ", ".join(f"{k} {v}" for k, v in found.code.classes(loop).items())
            print(f"  loop over rows: {count * found.rows / found.taps:.2f} per tap: {classes}")
    print(f"  issue slots per tap, by path: {', '.join(f'{x:.2f}' for x in found.paths)}")
    free = "none" if found.free is None else f"{found.free:.0%}"
    print(
        f"  average {found.average:.2f}: {free} of the programs touch neither the left nor the "
        "right border"
    )
    model = bounds(gpu, shape, dtype, found, name)
    print("  MODEL, us: " + ", ".join(f"{k} {v:.1f}" for k, v in model.items()))
    for fault in found.faults:
        print(f"  FAULT: {fault}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", default="h100", choices=GPUS)
    parser.add_argument("--shape", default="lrnet50/res2", help="comma-separated names")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--kernels", default=",".join(KERNELS))
    parser.add_argument("--strip", type=int, help="pixels per lane, instead of the tile chosen")
    options = parser.parse_args(arguments)
    reason = gpu_compile.missing()
    if reason:
        print(f"cannot inspect: {reason}", file=sys.stderr)
        return 2
    gpu, faults = GPUS[options.gpu], 0
    for shape_name in options.shape.split(","):
        if shape_name not in SHAPES:
            parser.error(f"--shape={shape_name} is unknown; use one of {', '.join(SHAPES)}")
        shape = SHAPES[shape_name].with_batch(options.batch)
        print(f"{shape.name}, batch {shape.batch}, {options.dtype}, {gpu.name}")
        for name in options.kernels.split(","):
            tile = Tile(options.strip) if options.strip else None
            found = report(gpu, shape, jnp.dtype(options.dtype), name, tile)
            show(gpu, shape, options.dtype, name, found)
            faults += len(found.faults)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
