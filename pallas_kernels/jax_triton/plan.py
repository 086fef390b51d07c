"""One call of a kernel as plain numbers: what the kernels, their launch and the tools agree on.

A `Plan` is a `tl.constexpr` of the kernels. They read its attributes, and call its methods while
they are compiled.
"""

import dataclasses
import hashlib
import math
import pathlib

import numpy as np

from pallas_kernels.spec import Inputs, Spec

LOG2E = 1.0 / math.log(2.0)
SOURCE = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()[:16]

# Triton's names of dtypes.
NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
PRIOR_ACCESS = 4  # priors per memory access: 16 bytes
MIN_SHARE = 0.07
MAX_CASES = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """Strips for which a kernel has code of its own.

    Attributes:
      first: number of the first such strip of a row.
      last: number of the last one.
      low: the first column that exists, counted from a strip's first column.
      high: behind the last column that exists.
      masked: whether columns low .. high - 1 may be outside the image, for some of the strips.
    """

    first: int
    last: int
    low: int
    high: int
    masked: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about a call that is known before it runs.

    Attributes:
      batch: B.
      height: H.
      width: W.
      channels: C.
      m: channels per group.
      depth: D.
      kh: height of the windows.
      kw: width of the windows.
      stride: of the windows.
      similarity: Phi.
      scale: multiplies Phi.
      softmax: whether weights are normalised.
      has_prior: whether there is a prior.
      dtypes: of query, key and value, by Triton's names.
      by_key: whether a lane owns keys instead of output pixels.
      strip: R, horizontally adjacent pixels of a lane.
      lanes: of a program; 32 times the number of warps.
      repeats: rounds of images that a program computes one after the other.
      pairs: whether the GPU multiplies pairs of float32, and M is even.
      sums_prior: whether the kernel sums d_prior, which takes more registers.
      source: of this file, as a hash, since caches of compiled kernels know a plan by its fields.
    """

    batch: int
    height: int
    width: int
    channels: int
    m: int
    depth: int
    kh: int
    kw: int
    stride: int
    similarity: str
    scale: float
    softmax: bool
    has_prior: bool
    dtypes: tuple[str, str, str]
    by_key: bool
    strip: int
    lanes: int
    repeats: int = 1
    pairs: bool = False
    sums_prior: bool = False
    source: str = dataclasses.field(default=SOURCE, init=False)

    @classmethod
    def of(
        cls,
        spec: Spec,
        inputs: Inputs,
        *,
        by_key: bool = False,
        strip: int,
        lanes: int = 128,
        repeats: int = 1,
        pairs: bool = False,
        sums_prior: bool = False,
    ) -> "Plan":
        """The plan for arrays or `jax.ShapeDtypeStruct`s."""
        batch, height, width, channels = inputs.value.shape
        kh, kw = spec.kernel_size
        q, k, v = (NAMES[str(np.dtype(x.dtype))] for x in inputs[:3])
        return cls(
            batch, height, width, channels, min(spec.channels_per_group, channels),
            inputs.query.shape[-1], kh, kw, spec.stride, spec.similarity, float(spec.scale),
            spec.normalization == "softmax", inputs.prior is not None, (q, k, v), by_key, strip,
            lanes, repeats, pairs and min(spec.channels_per_group, channels) % 2 == 0, sums_prior,
        )  # fmt: skip

    @property
    def groups(self) -> int:
        """G."""
        return -(-self.channels // self.m)

    @property
    def out_height(self) -> int:
        """Ho."""
        return (self.height - 1) // self.stride + 1

    @property
    def out_width(self) -> int:
        """Wo."""
        return (self.width - 1) // self.stride + 1

    @property
    def top(self) -> int:
        """Rows of a window above its centre."""
        return self.kh // 2

    @property
    def left(self) -> int:
        """Columns of a window left of its centre."""
        return self.kw // 2

    # What the lanes of a program do.

    @property
    def rows(self) -> int:
        """Height of what lanes own."""
        return self.height if self.by_key else self.out_height

    @property
    def columns(self) -> int:
        """Width of what lanes own."""
        return self.width if self.by_key else self.out_width

    @property
    def strips(self) -> int:
        """Strips side by side."""
        return -(-self.columns // self.strip)

    @property
    def image_lanes(self) -> int:
        """Lanes of a column of strips of one image."""
        return self.rows * self.groups

    @property
    def together(self) -> int:
        """Images that share programs; if possible so many that every lane has work."""
        fitting = [
            n
            for n in range(1, 33)
            if self.batch % n == 0 and n * self.image_lanes % self.lanes == 0
        ]
        return fitting[0] if fitting else min(8, self.batch)

    @property
    def round_lanes(self) -> int:
        """Lanes of a column of strips of the images that share programs."""
        return self.together * self.image_lanes

    @property
    def all_active(self) -> bool:
        """Whether every lane has work."""
        return self.round_lanes % self.lanes == 0 and self.batch % self.together == 0

    def with_strip(self, strip: int) -> "Plan":
        """The plan of a part of each strip, for code that must be small."""
        return dataclasses.replace(self, strip=strip)

    @property
    def whole_case(self) -> Case:
        """The case of strips of which nothing is known."""
        low, high = self.span
        return Case(0, self.strips - 1, low, high, True)

    @property
    def prior_columns(self) -> int:
        """Columns of memory for partial sums of d_prior: one for every lane of all programs."""
        return self.round_lanes * self.grid[1] * self.grid[2]

    @property
    def rounds(self) -> int:
        """How often `together` images follow one another."""
        return -(-self.batch // self.together)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Programs along a column of strips, columns of strips, rounds of images."""
        along = -(-self.round_lanes // self.lanes)
        return along, self.strips, -(-self.rounds // self.repeats)

    @property
    def phases(self) -> int:
        """Rows are visited in steps of this number, so that neighbouring lanes do equal work."""
        return self.stride if self.by_key and self.height % self.stride == 0 else 1

    @property
    def registers(self) -> int:
        """The most registers that a thread may have.

        Without a number, the assembler rather spills a few than have a warp less. With 168 or less,
        12 warps fit a multiprocessor. Kernels that need more get all that a thread may have. The
        forward kernel needs 160: with 168, the assembler computes addresses again in some loops.
        """
        few = not (self.by_key or self.pairs) and self.depth == 1 and self.item(2) == 2
        if self.sums_prior and self.vector(2) == 1:  # an address more for each channel of a pixel
            few = False
        if not few:
            return 255
        return 168 if self.sums_prior else 160

    # How arrays are read.

    def vector(self, which: int) -> int:
        """Floats per memory access of queries (0), keys (1) or values (2): at most 16 bytes."""
        size = 16 // BYTES[self.dtypes[which]]
        if which < 2:
            return math.gcd(size, self.depth)
        return math.gcd(size, math.gcd(self.channels, self.m))

    def item(self, which: int) -> int:
        """Bytes of a float of queries (0), keys (1) or values (2)."""
        return BYTES[self.dtypes[which]]

    @property
    def last_group(self) -> int:
        """Channels of the last group; less than `m` if it is partial."""
        return self.channels - (self.groups - 1) * self.m

    @property
    def prior_row(self) -> int:
        """Numbers in memory for a window row of the prior."""
        return -(-self.kw // PRIOR_ACCESS) * PRIOR_ACCESS

    # Units of logits.

    def coefficient(self, fast: bool) -> float:
        """The factor of Phi. Fast logits of a softmax are in units of log 2."""
        return self.scale * (LOG2E if fast and self.softmax else 1.0)

    def prescaled(self, fast: bool) -> bool:
        """Whether query and key are scaled before their difference is squared."""
        return (
            fast
            and self.softmax
            and self.similarity == "squared_difference"
            and self.scale > 0
            and all(BYTES[name] == 2 for name in self.dtypes[:2])
        )

    def root(self) -> float:
        """What prescaled queries and keys are multiplied by."""
        return math.sqrt(self.coefficient(True))

    def gradient_factor(self, fast: bool) -> float:
        """What sums of d_logit * slope are multiplied by, to be gradients."""
        if self.similarity == "squared_difference":
            return -2.0 * self.scale / (self.root() if self.prescaled(fast) else 1.0)
        return self.scale if self.similarity == "multiplication" else -self.scale

    # Columns of a strip, and border cases.

    @property
    def span(self) -> tuple[int, int]:
        """The columns that a strip uses, counted from its first pixel's: low, and behind the high.

        Columns are those of the other side: keys of output pixels, or outputs of keys.
        """
        if self.by_key:
            s = self.stride
            return -((self.kw - 1 - self.left) // s), (self.strip - 1 + self.left) // s + 1
        return 0, (self.strip - 1) * self.stride + self.kw

    def tap(self, column: int, i: int) -> int:
        """The tap of a window that joins a column and pixel i of a strip; -1 if none does."""
        if self.by_key:
            tap = i + self.left - column * self.stride
        else:
            tap = column - i * self.stride
        return tap if 0 <= tap < self.kw else -1

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases for which a kernel has code; every strip has exactly one, masked ones last.

        Strips at the border use fewer columns. Where they are a sizeable share of all strips,
        separate code saves the masks, and the arithmetic on columns that do not exist.
        """
        low, high = self.span
        step, start, limit = self.strip * self.stride, -self.left, self.width
        if self.by_key:
            step, start, limit = self.strip // self.stride, 0, self.out_width
        found: dict[tuple[int, int], list[int]] = {}
        masked = []
        for strip in range(self.strips):
            first = start + strip * step
            existing = max(low, -first), min(high, limit - first)
            if (strip + 1) * self.strip > self.columns:
                masked.append(strip)
            else:
                found.setdefault(existing, []).append(strip)
        cases = []
        for (a, b), strips in found.items():
            if len(strips) < MIN_SHARE * self.strips:
                masked += strips
            else:
                cases.append(Case(strips[0], strips[-1], a, b, False))
        if len(cases) + bool(masked) > MAX_CASES:
            cases, masked = [], list(range(self.strips))
        if masked:
            cases.append(self.whole_case)
        return tuple(cases)

    @property
    def case_count(self) -> int:
        """How many `cases` there are."""
        return len(self.cases)

    def case(self, number: int) -> Case:
        """One of the `cases`."""
        return self.cases[number]
