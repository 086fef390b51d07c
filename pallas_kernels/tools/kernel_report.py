"""What one compiled GPU kernel costs: its instructions per tap, by path and by class."""

import collections
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.pallas import key_strip, output_strip, query_kernel
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.strips import BorderCase
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.tools import cross_compilation, triton_programs
from pallas_kernels.tools.cross_compilation import Gpu, Kernel
from pallas_kernels.tools.kernel_programs import program
from pallas_kernels.tools.sass import Code, Loop
from pallas_kernels.tools.shapes import Shape

PARTS: dict[str, tuple[str, ...]] = {
    "arithmetic": ("fma", "pair", "exp"),
    "widening, addresses": ("integer", "convert"),
    "loads, stores": ("global",),
    "control": ("compare", "move", "constant", "branch"),
    "outside the loop over rows": (),
}
"""What issue slots are spent on, with the classes of instructions in the loop over rows."""


class Use(NamedTuple):
    """How the programs of a kernel use its code.

    Attributes:
      cases: the border cases of strips; each has code of its own.
      weights: for each case (pixel, tap) pairs of a window row, and whether there are masks.
      shares: of the programs, for each case.
      rows: trips of the loop over window rows, on average.
      strips_per_lane: strips that a lane computes, one after the other.
    """

    cases: list[BorderCase]
    weights: list[tuple[int, bool]]
    shares: list[float]
    rows: float
    strips_per_lane: int


@dataclasses.dataclass(frozen=True)
class Report:
    """What was counted in one kernel.

    Attributes:
      kernel: as compiled.
      tile: how the problem was cut.
      code: its machine code.
      taps: (pixel, tap) pairs of one strip.
      use: how its programs use the code.
      others: machine code of the kernels that XLA adds around it, by name.
    """

    kernel: Kernel
    tile: Tile
    code: Code
    taps: float
    use: Use
    others: dict[str, Code]

    @functools.cached_property
    def loops(self) -> list[Loop]:
        """The loop over window rows of each border case."""
        inner = [loop for loop in self.code.loops if loop.innermost]
        largest = sorted(inner, key=lambda loop: loop.last - loop.first)[-len(self.use.cases) :]

        def arithmetic(loop: Loop) -> tuple[int, int]:
            classes = self.code.classes(loop)
            return classes.get("fma", 0) + classes.get("pair", 0), loop.last - loop.first

        # Cases with more pairs of pixel and tap have more of it. Among equals, masks decide.
        order = sorted(range(len(self.use.cases)), key=lambda i: self.use.weights[i])
        found = dict(zip(order, sorted(largest, key=arithmetic), strict=True))
        return [found[i] for i in range(len(order))]

    @functools.cached_property
    def costs(self) -> list[float]:
        """Issue slots per (pixel, tap, group) of a program of each border case."""
        paths = self.code.paths(self.use.rows, self.use.strips_per_lane)
        loops = frozenset(self.loops)
        return [
            min(count for way, count in paths.items() if way & loops == {loop}) / self.taps
            for loop in self.loops
        ]

    @functools.cached_property
    def average(self) -> float:
        """Issue slots per (pixel, tap, group) over all programs."""
        return sum(x * cost for x, cost in zip(self.use.shares, self.costs, strict=True))

    @functools.cached_property
    def classes(self) -> dict[str, float]:
        """Instructions per tap of the loop over window rows, by class, over all programs."""
        found: dict[str, float] = collections.defaultdict(float)
        for loop, share in zip(self.loops, self.use.shares, strict=True):
            for kind, count in self.code.classes(loop).items():
                found[kind] += share * count * self.use.rows / self.taps
        return found

    @functools.cached_property
    def parts(self) -> dict[str, float]:
        """The average, by what the slots are spent on."""
        found = dict.fromkeys(PARTS, 0.0)
        for kind, count in self.classes.items():
            part = next((part for part, kinds in PARTS.items() if kind in kinds), "control")
            found[part] += count
        found["outside the loop over rows"] = self.average - sum(found.values())
        return found

    @functools.cached_property
    def faults(self) -> list[str]:
        """Everything that a kernel must not have."""
        found = []
        if self.kernel.spills:
            found.append(f"{self.kernel.spills} bytes of registers spilled")
        elif "spill" in self.code.classes():  # arrays that have no registers
            found.append("local memory")
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


def report(
    gpu: Gpu,
    shape: Shape,
    dtype: Any,
    name: str,
    tile: Tile | None = None,
    implementation: str = "pallas",
) -> Report:
    """Compiles and counts one kernel.

    Args:
      gpu: the GPU to compile for.
      shape: the problem.
      dtype: of all arrays but the copy of the prior.
      name: "forward", "query" or "key".
      tile: None for the one that would be used.
      implementation: "pallas" or "jax_triton".
    """
    if implementation == "jax_triton":
        return _of_triton(gpu, shape, dtype, name, tile)
    problem, tile, function, avals = program(shape, dtype, name, tile)
    kernels = cross_compilation.kernels(gpu, function, *avals)
    [kernel] = [x for x in kernels if x.name.startswith("local_relation")]
    others = {x.name: Code(x.sass) for x in kernels if x is not kernel}
    (kh, kw), s = problem.spec.kernel_size, problem.spec.stride
    taps = tile.strip * kh * kw / (s * s if name == "key" else 1)
    return Report(kernel, tile, Code(kernel.sass), taps, use(problem, tile, name), others)


def _of_triton(gpu: Gpu, shape: Shape, dtype: Any, name: str, tile: Tile | None) -> Report:
    kernel, plan = triton_programs.compiled(gpu, shape, dtype, name, tile)
    cases = triton_programs.border_cases(plan)
    weights = [
        (triton_programs.pairs_of_case(plan, i), case.columns is None)
        for i, case in enumerate(cases)
    ]
    shares = [len(case.strips) / plan.strips for case in cases]
    rows = triton_programs.rows_per_program(plan)
    taps = plan.strip * plan.kh * plan.kw / (plan.stride**2 if plan.by_key else 1)
    used = Tile(plan.strip, plan.lanes // 32, plan.repeats)
    how = Use(cases, weights, shares, rows, plan.repeats)
    return Report(kernel, used, Code(kernel.sass), taps, how, {})


def use(problem: Problem, tile: Tile, name: str) -> Use:
    """Counts what every program of a kernel does."""
    strips_per_lane, rows = 1, output_strip.window_rows
    columns = output_strip.window_columns(problem, tile.strip)
    if name == "forward":
        strips, cases = output_strip.output_strips(problem, tile, problem.groups * problem.chunks)
    elif name == "query":
        strips, cases, rounds = query_kernel.query_strips(problem, tile)
        strips_per_lane = rounds * strips.parts
    else:
        strips, cases = key_strip.key_strips(problem, tile)
        columns = key_strip.output_columns(problem, tile.strip)
        rows = key_strip.output_rows
    first = jnp.arange(0, strips.lanes, tile.lanes, dtype=jnp.int32)
    start, end = jax.vmap(lambda x: rows(problem, strips, x))(first)
    shares = [len(case.strips) / strips.strips_per_row for case in cases]
    weights = [
        (sum(len(users) for users in case.existing(columns).values()), case.columns is None)
        for case in cases
    ]
    return Use(cases, weights, shares, float((end - start).mean()), strips_per_lane)


class Bounds(NamedTuple):
    """A model: microseconds that each resource alone would need, from data-sheet rates."""

    issue: float
    fma: float
    exp: float
    loads: float
    dram: float


def bounds(gpu: Gpu, shape: Shape, dtype: Any, found: Report, name: str) -> Bounds:
    """The bounds of one kernel."""
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
    return Bounds(
        issue=found.average * taps / 32 / (4 * clocks),
        fma=(per_tap["fma"] + 2 * per_tap.get("pair", 0)) * taps / (gpu.lanes * clocks),
        exp=per_tap["exp"] * taps / (16 * clocks),
        loads=per_tap["global"] * taps / 32 / clocks,
        dram=traffic / gpu.bandwidth * 1e6,
    )
