"""Reads disassembled machine code: instruction classes, loops, and the cost of every path."""

import collections
import dataclasses
import re

# Machine instructions by the unit that they keep busy.
CLASSES = {
    "fma": r"FFMA|FADD|FMUL|FFMA2|FADD2|FMUL2",
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


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop from its first to its last instruction (indices), and whether it holds another."""

    first: int
    last: int
    innermost: bool


class Code:
    """The instructions of one kernel and how control runs through them."""

    def __init__(self, text: str):
        self.instructions: list[Instruction] = []
        self._labels: dict[str, int] = {}
        for line in text.splitlines():
            label = re.match(r"^\s*(\.L_\w+):", line)
            if label:
                self._labels[label[1]] = len(self.instructions)
            match = _LINE.match(line)
            if match:
                target = re.search(r"`\((\.L_\w+)\)", match[5])
                if match[3] == "NOP":
                    continue
                self.instructions.append(
                    Instruction(
                        int(match[1], 16),
                        match[3],
                        # A uniform predicate is an operand: BRA.U UP1, `(.L_x_2)
                        bool(match[2]) or bool(match[5].split("`")[0].strip() and target),
                        target[1] if target and match[3] == "BRA" else None,
                    )
                )
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

    def paths(self, trips: float, turns: int = 1) -> dict[frozenset[Loop], float]:
        """Instructions that one warp issues on each way through the kernel.

        Predicated instructions count in full. A branch may go either way, so a way may be one that
        no input takes.

        Args:
          trips: of innermost loops; others count once.
          turns: where more than one, the longest loop has so many and the rest of the kernel counts
            a part of that: the result is per turn.

        Returns:
          Innermost loops on the way -> instructions; the fewest where only branches differ.
        """
        inner = {loop.first: loop for loop in self.loops if loop.innermost}
        around = max(self.loops, key=lambda loop: loop.last - loop.first) if turns > 1 else None
        memo: dict[int, dict[frozenset[Loop], float]] = {}

        def weight(i: int) -> float:
            return 1.0 if around is None or around.first <= i <= around.last else 1.0 / turns

        def walk(start: int) -> dict[frozenset[Loop], float]:
            if start in memo:
                return memo[start]
            count, i, passed = 0.0, start, frozenset[Loop]()
            tails: dict[frozenset[Loop], float] = {frozenset(): 0.0}
            while i < len(self.instructions):
                if i in inner:
                    loop = inner[i]
                    count += (loop.last - loop.first + 1) * trips * weight(i)
                    passed |= {loop}
                    i = loop.last + 1
                    continue
                x = self.instructions[i]
                count += weight(i)
                target = self._labels[x.target] if x.target is not None else 0
                if x.opcode == "EXIT":
                    if x.predicated:
                        tails = join(walk(i + 1), tails)
                    break
                if target > i:
                    if not x.predicated:
                        i = target
                        continue
                    tails = join(walk(target), walk(i + 1))
                    break
                i += 1
            found: dict[frozenset[Loop], float] = {}
            for loops, tail in tails.items():
                found = join(found, {passed | loops: count + tail})
            memo[start] = found
            return found

        def join(
            a: dict[frozenset[Loop], float], b: dict[frozenset[Loop], float]
        ) -> dict[frozenset[Loop], float]:
            return {way: min(x[way] for x in (a, b) if way in x) for way in a.keys() | b.keys()}

        return walk(0)
