"""A MODEL of the time of a compiled training step on a GPU. Nothing here is measured.

Every instruction of the program that becomes a kernel costs the larger of

* DRAM: bytes read and written at 85 % of the data sheet's bandwidth. An operand of a fusion counts
  once, and only the part of it that the results need. Nothing stays in the L2 cache.
* arithmetic: operations of matrix products and convolutions at `MATRIX_SHARE` of the data sheet's
  rate for dense bfloat16, or `FLOAT_SHARE` of that for TF32.
* our kernels: their issue slots, `SLOTS` for each tap of the window as counted in the machine code
  at res2 (docs/gpu_kernels.md), on four schedulers per SM. With 64 lanes instead of 128, arithmetic
  takes two slots. A sum of two float32 in one instruction takes one slot and keeps the lanes busy
  for two, and the larger of slots and lanes counts. For the kernels of the stem and those before
  the relation of a block, `STEM_SLOTS` and `PROJECTION_SLOTS` for each channel of each pixel, as
  counted for an H100. They have no sums of two.

Launches, tails and gaps cost nothing. cuDNN's workspace and choice of algorithm are left out.
"""

import dataclasses
import math
import re
from collections import defaultdict

from experiments.bench.hlo_text import Instruction, Program
from lrnet_jax.variant import Variant
from pallas_kernels.tools.cross_compilation import Gpu

DRAM_SHARE = 0.85
MATRIX_SHARE = 0.6
FLOAT_SHARE = 0.4
# Operations per second of the data sheets, dense: (bfloat16, TF32).
MATRIX_RATES = {
    (8, 0): (312e12, 156e12),
    (9, 0): (989e12, 495e12),
    (10, 0): (2250e12, 1125e12),
}
# Issue slots of a tap, and how much arithmetic it is, where an instruction for two numbers counts
# twice. For each compute capability: python -m pallas_kernels.tools.instruction_counts --gpu=b200
SLOTS = {
    (8, 0): {"forward": (15.7, 11.6), "backward_query": (18.2, 13.7), "backward_key": (25.4, 21.3)},
    (9, 0): {"forward": (15.7, 11.6), "backward_query": (18.3, 13.7), "backward_key": (25.5, 21.3)},
    (10, 0): {
        "forward": (11.9, 11.6),
        "backward_query": (15.4, 13.7),
        "backward_key": (18.9, 21.3),
    },
}
STEM_SLOTS = {"forward": (33.4, 9.4), "backward": (41.0, 13.8)}
# At the first block of res3, where filled-up channels and columns cost most.
PROJECTION_SLOTS = {"forward": (35.9, 6.4), "sums": (45.0, 5.1), "gradient": (27.0, 3.8)}

LR = "LR kernels"
DOTS = "dots"
CONVOLUTIONS = "convolutions"
STEM = "stem kernels"
PROJECTIONS = "projection kernels"
STATISTICS = "statistics"
ELEMENTWISE = "elementwise"
COPIES = "copies"
REDUCTIONS = "reductions"
OPTIMISER = "optimiser"
CLASSES = (
    DOTS, CONVOLUTIONS, LR, STEM, PROJECTIONS, STATISTICS, ELEMENTWISE, COPIES, REDUCTIONS,
    OPTIMISER,
)  # fmt: skip
REST = "rest"

_KERNEL_OF_STEM = re.compile("stem_(forward|backward)")
_PROJECTION = re.compile("projections_(forward|sums|gradient)")
_STAGE = r"\b(stem|res\d+)\b"
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_MOVES = {"pad", "slice", "copy", "transpose", "concatenate", "convert", "reshape"}
_NO_WORK = _FREE | {"broadcast", "iota"}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the model says of one kernel.

    Attributes:
      kind: one of `CLASSES`.
      stage: "stem", "res2", ..., or "rest".
      seconds: its modelled time.
      size: bytes that it reads and writes.
    """

    kind: str
    stage: str
    seconds: float
    size: int


def step_costs(program: Program, variant: Variant, gpu: Gpu) -> list[Cost]:
    """The cost of every kernel of a compiled step."""
    model = _Model(program, variant, gpu)
    return [
        model.cost(instruction)
        for instruction in program.computations[program.entry]
        if instruction.operation not in _FREE
    ]


def milliseconds(costs: list[Cost], by: str) -> dict[str, float]:
    """Sums of modelled milliseconds by "kind" or "stage"."""
    sums: dict[str, float] = defaultdict(float)
    for cost in costs:
        sums[getattr(cost, by)] += 1e3 * cost.seconds
    return dict(sums)


@dataclasses.dataclass(frozen=True)
class _Model:
    program: Program
    variant: Variant
    gpu: Gpu

    def cost(self, instruction: Instruction) -> Cost:
        stage = self._stage(instruction)
        size, seconds = self._size(instruction), 0.0
        kind = self._kind(instruction)
        if kind in (DOTS, CONVOLUTIONS):
            seconds = self._matrix_seconds(instruction)
        elif kind == LR:
            seconds = self._issue_seconds(*self._taps(instruction, stage))
        elif kind == STEM:
            seconds = self._issue_seconds(*self._stem_channels(instruction))
        elif kind == PROJECTIONS:
            channels = self._operands(instruction)[0].elements
            [name] = _PROJECTION.findall(instruction.source)[-1:]
            seconds = self._issue_seconds(channels, *PROJECTION_SLOTS[name])
        seconds = max(seconds, size / (DRAM_SHARE * self.gpu.bandwidth))
        return Cost(kind, stage, seconds, size)

    def _inside(self, instruction: Instruction) -> list[Instruction]:
        return self.program.computations.get(instruction.called, [])

    def _operands(self, instruction: Instruction) -> list[Instruction]:
        by_name = self.program.by_name
        return [by_name[name] for name in instruction.operands if name in by_name]

    def _stage(self, instruction: Instruction) -> str:
        sources = [instruction.source, *(inner.source for inner in self._inside(instruction))]
        for source in sources:
            found = re.search(_STAGE, source)
            if found:
                return found[1]
        return REST

    def _kind(self, instruction: Instruction) -> str:
        target = instruction.target
        if "triton" in target:
            if _PROJECTION.search(instruction.source):
                return PROJECTIONS
            return STEM if _KERNEL_OF_STEM.search(instruction.source) else LR
        if "cublas" in target or instruction.operation == "dot":
            return DOTS
        if "cudnn" in target or instruction.operation == "convolution":
            return CONVOLUTIONS
        inside = self._inside(instruction)
        operations = {inner.operation for inner in inside} or {instruction.operation}
        sources = " ".join([instruction.source, *(inner.source for inner in inside)])
        if not re.search(_STAGE, instruction.source) and self._updates(instruction):
            return OPTIMISER
        if operations & {"reduce", "reduce-window"}:
            return STATISTICS if "batch_norm" in sources or "stem" in sources else REDUCTIONS
        return COPIES if operations - _NO_WORK <= _MOVES else ELEMENTWISE

    def _updates(self, instruction: Instruction) -> bool:
        """Whether a parameter of the program, of the size of the results, goes in: a state."""
        sizes = {array.elements for array in instruction.results}
        return any(
            operand.operation == "parameter" and operand.elements in sizes
            for operand in self._operands(instruction)
        )

    def _size(self, instruction: Instruction) -> int:
        written = sum(a.size for a in instruction.results if a.dtype != "s8")  # cuBLAS: workspace
        if instruction.operation == "fusion":
            return written + self._fusion_reads(instruction)
        return written + sum(operand.size for operand in self._operands(instruction))

    def _fusion_reads(self, fusion: Instruction) -> int:
        """Bytes of the parts of the operands that the results need."""
        inside = self._inside(fusion)
        by_name = {inner.name: inner for inner in inside}
        needed: dict[str, float] = defaultdict(float)
        needed[inside[-1].name] = inside[-1].elements
        total = 0.0
        for inner in reversed(inside):
            whole = max(inner.elements, 1)
            share = min(needed[inner.name] / whole, 1.0)
            if inner.operation == "parameter":
                total += share * inner.size
            for name in inner.operands:
                if name not in by_name:
                    continue
                operand = by_name[name]
                if inner.operation in ("slice", "dynamic-slice"):
                    needed[name] += share * whole
                elif inner.operation in ("reduce", "reduce-window", "tuple"):
                    needed[name] += operand.elements
                else:
                    needed[name] += share * operand.elements
        return round(total)

    def _matrix_seconds(self, instruction: Instruction) -> float:
        operands = [operand.results[0] for operand in self._operands(instruction)[:2]]
        result = instruction.results[0]
        # Of a product with sizes (m, k), (k, n), (m, n), the square root of all elements is m k n.
        elements = [*(operand.elements for operand in operands), result.elements]
        if self._kind(instruction) == DOTS:
            multiplications = math.sqrt(math.prod(elements))
        else:
            multiplications = _convolution(instruction, operands[0].sizes, operands[1].sizes)
        narrow, wide = MATRIX_RATES[self.gpu.capability]
        rate = MATRIX_SHARE * narrow if operands[0].dtype == "bf16" else FLOAT_SHARE * wide
        return 2 * multiplications / rate

    def _issue_seconds(self, count: float, slots: float, arithmetic: float) -> float:
        """Seconds of so many (tap, group, pixel) or the like, from issue slots of each."""
        busy = arithmetic * 128 / self.gpu.lanes
        slots = max(slots - arithmetic + busy, busy)
        return count / 32 * slots / (self.gpu.cores * 4 * self.gpu.clock * 1e9)

    def _taps(self, instruction: Instruction, stage: str) -> tuple[float, float, float]:
        found = re.search(
            r"local_relation_(forward|backward_query|backward_key)", instruction.source
        )
        if found is None:
            return 0, 0, 0
        variant = self.variant
        side = variant.stem_kernel_size if stage == "stem" else variant.kernel_size
        depth = 1 if stage == "stem" else variant.query_key_dim
        queries = self._operands(instruction)[0].elements / depth
        return queries * side**2, *SLOTS[self.gpu.capability][found[1]]

    def _stem_channels(self, instruction: Instruction) -> tuple[float, float, float]:
        [name] = _KERNEL_OF_STEM.findall(instruction.source)[-1:]
        variant, images = self.variant, self._operands(instruction)[0]
        pixels = images.elements / variant.in_channels
        return pixels * variant.stem_channels, *STEM_SLOTS[name]


def _convolution(
    instruction: Instruction, first: tuple[int, ...], second: tuple[int, ...]
) -> float:
    """Multiplications of a convolution or of one of its gradients."""
    filters = {"Forward": second, "BackwardInput": second}
    for name, sizes in filters.items():
        if f"conv{name}" in instruction.target:
            outputs = instruction.results[0].sizes if name == "Forward" else first
            return math.prod(outputs) * math.prod(sizes) / _channels(outputs, sizes)
    return (
        math.prod(second)
        * math.prod(instruction.results[0].sizes)
        / _channels(second, instruction.results[0].sizes)
    )


def _channels(outputs: tuple[int, ...], filters: tuple[int, ...]) -> int:
    """The channels of the outputs, which are an axis of both; images have equal sides."""
    shared = [size for size in outputs if size in filters]
    return max(shared, default=1)
