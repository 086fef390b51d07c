"""Reads disassembled machine code: instruction classes, loops, and the cost of every path."""

import collections
import dataclasses
import re

# Machine instructions by the unit that they keep busy.
CLASSES = {
    "fma": r"FFMA|FADD|FMUL",
    "pair": r"FFMA2|FADD2|FMUL2",  # the same of two numbers
    "exp": r"MUFU",
    "compare": r"FSETP|FSEL|FMNMX|ISETP|PLOP3|SEL|FSET|ISET|P2R|R2P|VIMNMX|IMNMX|UISETP|USEL|"
    r"UPLOP3",
    "convert": r"F2F|F2FP|F2I|I2F|HADD2|HFMA2|HMUL2|I2FP",
    "integer": r"IMAD|IADD3|IADD|LEA|LOP3|SHF|SHL|PRMT|IABS|UIADD3|UIMAD|ULEA|ULOP3|USHF|VIADD|"
    r"VIADDMNMX|UIADD|UPRMT|I2I|BREV|FLO|POPC|SGXT|BMSK|LOP",
    "move": r"MOV|UMOV|CS2R|S2R|S2UR|R2UR",
    "global": r"LDG|STG",
    "constant": r"LDC|ULDC|LDCU",
    "shared": r"LDS|STS|LDSM|STSM|ATOMS",
    "spill": r"LDL|STL",
    "exchange": r"SHFL|VOTE|REDUX|UVOTE|MATCH|VOTEU|CREDUX",
    "barrier": r"BAR|SYNCS|MEMBAR",
    "atomic": r"ATOM|ATOMG|RED|REDG",
    "branch": r"BRA|BSSY|BSYNC|EXIT|WARPSYNC|CALL|RET|BREAK|YIELD|BRX|NANOSLEEP|BMOV",
}
_PATTERNS = {name: re.compile(f"^(?:{ops})$") for name, ops in CLASSES.items()}
_LINE = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_]*)((?:\.[A-Za-z0-9_]+)*)"
    r"(.*?);"
)


def classify(opcode: str) -> str:
    """The class of an opcode without its suffixes, `other` if it is in none."""
    for name, pattern in _PATTERNS.items():
        if pattern.match(opcode):
            return name
    return "other"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One machine instruction: address, opcode, whether it has a predicate, jump target."""

    address: int
    opcode: str
    predicated: bool
    target: str | None


def _instruction(line: str) -> Instruction | None:
    """The instruction of a line of the listing, if it has one."""
    match = _LINE.match(line)
    if match is None:
        return None
    address, predicate, opcode, _, operands = match.groups()
    target = re.search(r"`\((\.L_\w+)\)", operands)
    # A uniform predicate is an operand: BRA.U UP1, `(.L_x_2)
    uniform = target is not None and operands.split("`")[0].strip() != ""
    jump = target[1] if target is not None and opcode == "BRA" else None
    return Instruction(int(address, 16), opcode, predicate is not None or uniform, jump)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop from its first to its last instruction (indices), and whether it holds another."""

    first: int
    last: int
    innermost: bool


Paths = dict[frozenset[Loop], float]


class Code:
    """The instructions of one kernel and how control runs through them."""

    def __init__(self, text: str):
        self.instructions: list[Instruction] = []
        self._labels: dict[str, int] = {}
        for line in text.splitlines():
            label = re.match(r"^\s*(\.L_\w+):", line)
            if label:
                self._labels[label[1]] = len(self.instructions)
            instruction = _instruction(line)
            if instruction is not None and instruction.opcode != "NOP":
                self.instructions.append(instruction)
        self._drop_padding()
        self.loops = self._find_loops()

    def _drop_padding(self) -> None:
        while self.instructions and self.instructions[-1].target is not None:
            last = self.instructions[-1]
            assert last.target is not None
            if self._labels.get(last.target) != len(self.instructions) - 1:
                return
            self.instructions.pop()

    def _find_loops(self) -> list[Loop]:
        spans = set()
        for i, instruction in enumerate(self.instructions):
            if instruction.target is not None and self._labels[instruction.target] <= i:
                spans.add((self._labels[instruction.target], i))
        return [
            Loop(a, b, not any(a <= c and d <= b and (a, b) != (c, d) for c, d in spans))
            for a, b in sorted(spans)
        ]

    def classes(self, loop: Loop | None = None) -> dict[str, int]:
        """Instructions per class, of a loop's body or of everything."""
        chosen = (
            self.instructions if loop is None else self.instructions[loop.first : loop.last + 1]
        )
        return dict(collections.Counter(classify(x.opcode) for x in chosen).most_common())

    def paths(self, trips: float, outer_trips: int = 1) -> Paths:
        """Instructions that one warp issues on each way through the kernel.

        Predicated instructions count in full. A branch may go either way, so a way may be one that
        no input takes.

        Args:
          trips: of innermost loops; others count once.
          outer_trips: of the longest loop. If there are several, the rest of the kernel counts a
            part of that, so that the result is per trip.

        Returns:
          The number of instructions by the innermost loops on the way, and the fewest where ways
          differ in branches alone.
        """
        return _Walk(self, trips, outer_trips).to_exit(0)

    def target(self, instruction: Instruction) -> int:
        """The index that a jump leads to; 0 for what is no jump."""
        return 0 if instruction.target is None else self._labels[instruction.target]


class _Walk:
    """Follows a kernel from an instruction to its exits, and counts."""

    def __init__(self, code: Code, trips: float, outer_trips: int):
        self.code = code
        self.trips = trips
        self.inner = {loop.first: loop for loop in code.loops if loop.innermost}
        self.outer: Loop | None = None
        if outer_trips > 1:
            self.outer = max(code.loops, key=lambda loop: loop.last - loop.first)
        self.outside = 1.0 / outer_trips
        self.memo: dict[int, Paths] = {}

    def to_exit(self, start: int) -> Paths:
        """Instructions from an index to the exits, by the innermost loops on the way."""
        if start not in self.memo:
            count, passed, tails = self._straight(start)
            found: Paths = {}
            for loops, tail in tails.items():
                found = _fewest(found, {passed | loops: count + tail})
            self.memo[start] = found
        return self.memo[start]

    def _straight(self, i: int) -> tuple[float, frozenset[Loop], Paths]:
        """Instructions and loops up to the next branch or exit, and the ways from there."""
        count, passed = 0.0, frozenset[Loop]()
        end: Paths = {frozenset(): 0.0}
        while i < len(self.code.instructions):
            if i in self.inner:
                loop = self.inner[i]
                count += (loop.last - loop.first + 1) * self.trips * self._weight(i)
                passed |= {loop}
                i = loop.last + 1
                continue
            x, target = self.code.instructions[i], self.code.target(self.code.instructions[i])
            count += self._weight(i)
            if x.opcode == "EXIT":
                return count, passed, _fewest(self.to_exit(i + 1), end) if x.predicated else end
            if target > i and x.predicated:
                return count, passed, _fewest(self.to_exit(target), self.to_exit(i + 1))
            i = target if target > i else i + 1
        return count, passed, end

    def _weight(self, i: int) -> float:
        inside = self.outer is None or self.outer.first <= i <= self.outer.last
        return 1.0 if inside else self.outside


def _fewest(a: Paths, b: Paths) -> Paths:
    return {way: min(x[way] for x in (a, b) if way in x) for way in a.keys() | b.keys()}
