"""Reads the text of a program that XLA compiled."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

ITEM_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Array:
    """The dtype and sizes of an array.

    Attributes:
      dtype: XLA's name, such as "bf16".
      sizes: of its axes.
    """

    dtype: str
    sizes: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def size(self) -> int:
        """Bytes."""
        return ITEM_BYTES[self.dtype] * self.elements


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: its name.
      results: its arrays; several for a tuple.
      operation: such as "fusion" or "custom-call".
      operands: names of instructions.
      attributes: the rest of the line.
    """

    name: str
    results: tuple[Array, ...]
    operation: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def elements(self) -> int:
        """Number of elements of all results."""
        return sum(array.elements for array in self.results)

    @property
    def size(self) -> int:
        """Bytes of all results."""
        return sum(array.size for array in self.results)

    @property
    def source(self) -> str:
        """The path of the operation that it came from, with named scopes."""
        return self._attribute(r'op_name="([^"]*)"')

    @property
    def target(self) -> str:
        """Of a custom call, what is called."""
        return self._attribute(r'custom_call_target="([^"]*)"')

    @property
    def called(self) -> str:
        """Of a fusion, the computation that it consists of."""
        return self._attribute(r"calls=%?([\w.\-]+)")

    def _attribute(self, pattern: str) -> str:
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: instructions by the name of their computation, in order.
      entry: name of the computation that is run.
    """

    computations: dict[str, list[Instruction]]
    entry: str

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions of the entry."""
        return {instruction.name: instruction for instruction in self.computations[self.entry]}


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    current, entry = None, ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if header and not line.startswith(" "):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)):
            current.append(_instruction(found[1], line[found.end() :]))
    if not entry:
        raise ValueError("the text of the program has no ENTRY computation")
    return Program(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    text = re.sub(r"/\*.*?\*/", "", text)
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    start = text.index("(")
    end = _closing(text, start)
    return Instruction(
        name,
        tuple(_arrays(shape)),
        text[:start],
        tuple(re.findall(r"%([\w.\-]+)", text[start:end])),
        text[end + 1 :],
    )


def _arrays(shape: str) -> Iterator[Array]:
    for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        if dtype in ITEM_BYTES:
            yield Array(dtype, tuple(int(size) for size in sizes.split(",") if size))


def _closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"no closing bracket in {text[start : start + 60]!r}")
