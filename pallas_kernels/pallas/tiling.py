"""How the kernels cut a problem: pixels per lane, warps per block, strips per lane.

`tiles.json` holds measured tiles (`save`), per device, implementation and problem. The kernels in
the Triton language are cut alike, but other tiles may be their fastest. For other problems a model
of the instructions decides. It was fitted to disassembled kernels
(`python -m pallas_kernels.tools.instruction_counts`), not to times:

* By the bounds that this command prints, kernels of stride 1 are limited by instruction issue
  before DRAM or caches, so the tile with the fewest instructions per useful tap wins. (At stride 2
  there are four times as many keys and values for the same taps, and DRAM limits every tile.)
* A longer strip R uses each loaded key and value for more pixels: R * Kw taps for about
  R * stride + Kw columns. Its accumulators occupy registers, of which about `REGISTERS` are free
  before the assembler spills. Beyond 8 pixels a strip only gains code size.
* A strip that does not divide the width computes pixels that are not needed.
* With 4 warps a block spans few enough rows to skip window rows outside the image, and enough rows
  to share their loads through the L1 cache.
* The query kernel sums d_prior over `strips_per_lane` strips per lane. 65,536 lanes fill an H100
  once; more lanes only add columns of partial sums.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable
from typing import NotRequired, TypedDict

import jax
import numpy as np

from pallas_kernels.pallas.problem import Problem
from pallas_kernels.platform_switch import current_platform, multiplies_pairs

PALLAS = "pallas"  # the implementation of rows that name none
TABLE = pathlib.Path(__file__).with_name("tiles.json")
MAX_STRIP = 8
REGISTERS = {"forward": 90, "query": 110, "key": 150}
LANES = 65_536


@dataclasses.dataclass(frozen=True)
class Tile:
    """How one kernel is cut.

    Attributes:
      strip: R, horizontally adjacent pixels per lane.
      warps: of 32 lanes per block.
      strips_per_lane: at most so many strips per lane, one after the other: of other images or, if
        there are too few, of other rows. Only the query kernel takes more than one.
    """

    strip: int
    warps: int = 4
    strips_per_lane: int = 1

    @property
    def lanes(self) -> int:
        """Lanes per block."""
        return 32 * self.warps


class Measurement(TypedDict):
    """A row of `tiles.json`.

    Attributes:
      device: the kind of GPU.
      kernel: "forward", "query" or "key".
      problem: see `describe`.
      implementation: whose kernel; rows without it are of "pallas".
      microseconds: of one call.
      tile: the fields of `Tile`.
    """

    device: str
    kernel: str
    problem: str
    implementation: NotRequired[str]
    microseconds: float
    tile: dict[str, int]


def chosen(problem: Problem, kernel: str, implementation: str = PALLAS) -> Tile:
    """The tile that a kernel runs with: the measured one, else the heuristic's.

    Args:
      problem: what it computes.
      kernel: "forward", "query" (d_query and d_prior) or "key" (d_key and d_value). The strip of
        the last is a multiple of the stride.
      implementation: whose kernel.
    """
    found = measured(problem, kernel, implementation=implementation)
    if found is not None:
        return found
    found = heuristic(problem, kernel)
    if implementation != PALLAS and multiplies_pairs():
        found = dataclasses.replace(found, strip=for_pairs(problem, kernel, found.strip))
    return found


def for_pairs(problem: Problem, kernel: str, strip: int) -> int:
    """The strip, or a shorter one for a Triton kernel that would spill where it sums in pairs.

    Kernels of the networks spilled on a B200 (`instruction_counts --faults --gpu=b200`).
    """
    stride, float32 = problem.spec.stride, problem.dtypes[2].itemsize == 4
    if kernel == "key":
        spills = float32 or (problem.vector == 1 and stride == 1)
    else:
        spills = kernel == "query" and stride == 2 and float32
    shorter = MAX_STRIP - (2 if kernel == "key" and stride == 2 else 1)
    if not spills or strip <= shorter:
        return strip
    # A few pixels beyond the border of a wide row cost little, and those of a narrow row much.
    width = problem.width if kernel == "key" else problem.out_size[1]
    return shorter if -(-width // shorter) * shorter <= 1.02 * width else strip


def heuristic(problem: Problem, kernel: str) -> Tile:
    """The strip with the fewest modelled instructions per useful tap."""
    strips = list(candidates(problem, kernel))
    strip = min(strips, key=lambda strip: (modelled_slots(problem, kernel, strip), strip))
    strips_per_lane = 1
    if kernel == "query" and problem.has_prior:
        height, width = problem.out_size
        lanes = problem.batch * height * -(-width // strip) * problem.groups
        strips_per_lane = max(1, min(16, lanes // LANES))
    return Tile(strip, strips_per_lane=strips_per_lane)


def candidates(problem: Problem, kernel: str) -> Iterable[int]:
    """Strips that fit the registers, shortest first; always at least one."""
    step = problem.spec.stride if kernel == "key" else 1
    pixel = {
        "forward": problem.chunk + problem.depth + 1,
        "query": problem.chunk + 2 * problem.depth + 3,
        "key": 2 * problem.chunk + 2 * problem.depth,
    }[kernel]
    yield step
    for strip in range(2 * step, max(MAX_STRIP, step) + 1, step):
        if strip * pixel <= REGISTERS[kernel]:
            yield strip


def modelled_slots(problem: Problem, kernel: str, strip: int) -> float:
    """Instructions that a warp issues per (pixel, tap, group) of real work; a model."""
    spec, m, depth = problem.spec, problem.chunk, problem.depth
    (kh, kw), s = spec.kernel_size, spec.stride
    widen = m if problem.dtypes[2].itemsize == 2 else 0
    column = 2 * depth + m // problem.vector + widen + 2
    arithmetic = 2 * depth + 1 + (problem.dtypes[0].itemsize > 2)
    arithmetic += {"forward": m + 1, "query": m + 2 + depth, "key": 2 * m + 2 + depth}[kernel]
    pixel = {"forward": 4 * m + 20, "query": 7 * m + 30, "key": 6 * m + 10}[kernel]
    width = problem.out_size[1]
    if kernel == "key":
        width, taps = problem.width, strip * kw / s
        columns = ((strip - 1) + (kw - 1) * spec.dilation) // s + 1
        rows = kh / s
        column += 3
    else:
        taps, rows = strip * kw, kh
        columns = len({i * s + x * spec.dilation for i in range(strip) for x in range(kw)})
    useful = width / (-(-width // strip) * strip)
    total = rows * (taps * arithmetic + columns * column + 35) + strip * pixel + 60
    return total / (rows * taps * useful)


def measured(
    problem: Problem, kernel: str, device: str | None = None, implementation: str = PALLAS
) -> Tile | None:
    """The tile that was fastest on a device; None if none was measured.

    Args:
      problem: its batch size does not matter.
      kernel: "forward", "query" or "key".
      device: its name; None takes the GPU of this machine.
      implementation: whose kernel.
    """
    device = device or gpu_name()
    if device is None:
        return None
    found = _table().get((device, implementation, kernel, describe(problem)))
    return Tile(**found) if found else None


def describe(problem: Problem) -> str:
    """The text that identifies a problem in the table: everything that its tile depends on."""
    spec = problem.spec
    kh, kw = spec.kernel_size
    dtypes = "/".join(str(np.dtype(dtype)) for dtype in problem.dtypes)
    return (
        f"{dtypes} {problem.height}x{problem.width}x{problem.channels} depth {problem.depth} "
        f"kernel {kh}x{kw} group {spec.channels_per_group} stride {spec.stride} dilation "
        f"{spec.dilation} {spec.similarity} {spec.normalization} "
        f"{'prior' if problem.has_prior else 'no prior'}"
    )


def gpu_name() -> str | None:
    """The kind of GPU that JAX computes on; None without one."""
    if current_platform() != "cuda":
        return None
    return str(jax.devices()[0].device_kind)


def save(
    device: str,
    kernel: str,
    problem: Problem,
    tile: Tile,
    microseconds: float,
    implementation: str = PALLAS,
) -> None:
    """Adds a measured tile to the table, or replaces it."""
    place = (device, implementation, kernel, describe(problem))
    rows = [row for row in _rows() if _place(row) != place]
    rows.append(
        {
            "device": device,
            "kernel": kernel,
            "problem": describe(problem),
            "implementation": implementation,
            "microseconds": microseconds,
            "tile": dataclasses.asdict(tile),
        }
    )
    rows.sort(key=lambda row: (row["device"], row["problem"], row["kernel"], _place(row)))
    TABLE.write_text(json.dumps(rows, indent=1) + "\n")
    _table.cache_clear()


def _rows() -> list[Measurement]:
    return json.loads(TABLE.read_text()) if TABLE.exists() else []


Place = tuple[str, str, str, str]


def _place(row: Measurement) -> Place:
    """What a row is of."""
    return row["device"], row.get("implementation", PALLAS), row["kernel"], row["problem"]


@functools.cache
def _table() -> dict[Place, dict[str, int]]:
    return {_place(row): row["tile"] for row in _rows()}
