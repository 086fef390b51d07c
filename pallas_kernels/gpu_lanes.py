"""What the GPU kernels share: the problem as numbers, the work of one lane, loads, arithmetic.

A program is a flat row of lanes, one per thread. A lane owns one group (or a chunk of a wide
group's channels) and a STRIP of R horizontally adjacent pixels; everything it needs lives in its
registers as Python lists of 1-d arrays, so a loaded key or value serves up to Kw pixels. Lanes run
over groups first, so that a warp reads whole cache lines, then down the image, so that a program
mostly sits in one column of strips: away from the left and right border it needs no masks.

Only this file and the two kernel files know Pallas-Triton. The bodies above it are plain array
code; a twin through jax-triton or Mosaic would replace `Alu`, `load` and `store` and keep the rest.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.spec import Spec

LOG2E = 1.0 / math.log(2.0)

Vector = jax.Array  # (N,): one number per lane
Scalar = jax.Array | int


@dataclasses.dataclass(frozen=True)
class Problem:
    """Every static number of one local relation, as a kernel sees it.

    Attributes:
      spec: the options.
      batch: B.
      height: H.
      width: W.
      channels: C.
      depth: D.
      has_prior: False for a prior of None.
      dtypes: of query, key and value.
    """

    spec: Spec
    batch: int
    height: int
    width: int
    channels: int
    depth: int
    has_prior: bool
    dtypes: tuple[np.dtype, np.dtype, np.dtype]

    @classmethod
    def of(cls, spec: Spec, query: Any, key: Any, value: Any, prior: Any) -> "Problem":
        """Reads shapes and dtypes from arrays or `jax.ShapeDtypeStruct`s."""
        batch, height, width, channels = value.shape
        dtypes = (np.dtype(query.dtype), np.dtype(key.dtype), np.dtype(value.dtype))
        depth = query.shape[-1]
        return cls(spec, batch, height, width, channels, depth, prior is not None, dtypes)

    @property
    def groups(self) -> int:
        """G."""
        return self.spec.groups(self.channels)

    @property
    def out_size(self) -> tuple[int, int]:
        """(Ho, Wo)."""
        return self.spec.output_size(self.height, self.width)

    @property
    def softmax(self) -> bool:
        """Whether weights are normalised."""
        return self.spec.normalization == "softmax"

    @property
    def vector(self) -> int:
        """Channels per memory access.

        At most 16 bytes, and a divisor of C and M: Triton moves anything wider or unaligned through
        shared memory, and a vector must not straddle the end of a group.
        """
        size = 16 // self.dtypes[2].itemsize
        return math.gcd(size, math.gcd(self.channels, self.spec.channels_per_group))

    @property
    def chunk(self) -> int:
        """Channels that a lane holds at a time: M, or 8 of a group that registers cannot hold."""
        return self.spec.channels_per_group if self.spec.channels_per_group <= 16 else 8

    @property
    def chunks(self) -> int:
        """Chunks per group."""
        return -(-self.spec.channels_per_group // self.chunk)

    @property
    def far(self) -> bool:
        """Whether a far away key is a mask: its weight is 0 because Phi falls without bound."""
        return self.spec.similarity != "multiplication" and self.spec.scale > 0


@dataclasses.dataclass(frozen=True)
class Alu:
    """Arithmetic that XLA's Triton does not emit by itself, as inline PTX.

    Attributes:
      inline: False gives plain jnp, for interpret mode, which cannot run PTX.
    """

    inline: bool

    def _asm(self, code: str, *args: jax.Array) -> jax.Array:
        shape = jnp.broadcast_shapes(*(x.shape for x in args))
        out = jax.ShapeDtypeStruct(shape, jnp.float32)
        return plt.elementwise_inline_asm(
            code,
            args=[jnp.broadcast_to(x, shape) for x in args],
            constraints="=f" + ",f" * len(args),
            pack=1,
            result_shape_dtypes=[out],
        )[0]

    def fma(self, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        """The sum a * b + c, rounded once (Triton would emit a multiplication and an addition)."""
        return self._asm("fma.rn.f32 $0, $1, $2, $3;", a, b, c) if self.inline else a * b + c

    def minus_square(self, c: jax.Array, d: jax.Array) -> jax.Array:
        """The difference c - d * d; a separate negation would be an instruction of its own."""
        code = "{ .reg .f32 t; neg.f32 t, $2; fma.rn.f32 $0, t, $2, $1; }"
        return self._asm(code, c, d) if self.inline else c - d * d

    def exp2(self, x: jax.Array) -> jax.Array:
        """2**x to 2 units in the last place, results below 2**-126 flushed to 0."""
        return self._asm("ex2.approx.ftz.f32 $0, $1;", x) if self.inline else jnp.exp2(x)

    def reciprocal(self, x: jax.Array) -> jax.Array:
        """1 / x to 1 unit in the last place, for normal x."""
        return self._asm("rcp.approx.ftz.f32 $0, $1;", x) if self.inline else 1.0 / x

    def widen(self, x: jax.Array) -> jax.Array:
        """To float32. Packed bfloat16 takes one instruction a number, Triton's own cast two."""
        if not self.inline or x.dtype != jnp.bfloat16 or x.ndim != 2 or x.shape[1] == 1:
            return x.astype(jnp.float32)
        return plt.elementwise_inline_asm(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
            args=[x],
            constraints="=r,=r,r",
            pack=2,
            result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, jnp.float32)],
        )[0]

    def dot(self, a: Sequence[Vector], b: Sequence[Vector], start: Vector) -> Vector:
        """Start plus the sum of products, as a chain of fused multiply-adds."""
        for x, y in zip(a, b, strict=True):
            start = self.fma(x, y, start)
        return start


def load(ref: Any, index: jax.Array, mask: Vector | None = None, other: float = 0.0) -> jax.Array:
    """Elements of a flat array; `other` where the mask is False."""
    if mask is None:
        return plt.load(ref.at[index])
    mask = jnp.broadcast_to(mask if index.ndim == 1 else mask[:, None], index.shape)
    return plt.load(ref.at[index], mask=mask, other=jnp.asarray(other, ref.dtype))


def store(alu: Alu, ref: Any, index: jax.Array, x: jax.Array, mask: Vector | None = None) -> None:
    """Writes elements of a flat array where the mask is True."""
    if mask is not None:
        mask = jnp.broadcast_to(mask if index.ndim == 1 else mask[:, None], index.shape)
        if not alu.inline:  # interpret mode writes back what masked lanes read, in any order
            index = jnp.where(mask, index, ref.shape[0])
    plt.store(ref.at[index], x.astype(ref.dtype), mask=mask)


def span(index: Vector, start: int, size: int) -> jax.Array:
    """Indices of `size` neighbouring elements per lane: (N, size)."""
    return index[:, None] + start + jnp.arange(size, dtype=jnp.int32)[None, :]


def split(x: jax.Array) -> list[Vector]:
    """(N, c) to c vectors: renames registers, moves nothing."""
    if x.shape[1] == 1:
        return [x.reshape(x.shape[0])]
    return [part.reshape(x.shape[0]) for part in jnp.split(x, x.shape[1], axis=1)]


def both(a: Vector | None, b: Vector | None) -> Vector | None:
    """The conjunction of two masks; None is True."""
    if a is None or b is None:
        return b if a is None else a
    return a & b


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Logits and their derivatives in the units and to the precision that a loop asks for.

    With `fast`, logits come in units of log 2, so that 2**logit needs no multiplication, and for
    16-bit queries and keys the squared difference is (a q - a k)^2 with a^2 = scale * log2(e): one
    instruction less. Rounding a*q costs |q - k| (|q| + |k|) 2^-23 of the logit, so loops that use
    it check `distrusts`. Without `fast`: natural units, q - k as written.

    Attributes:
      problem: the problem.
      alu: arithmetic.
      fast: see above.
      of_key: whether the side that stays in registers (`centre`) is the key, not the query.
    """

    problem: Problem
    alu: Alu
    fast: bool
    of_key: bool = False

    @property
    def unit(self) -> float:
        """One natural logit in the units of `logit`."""
        return LOG2E if self.fast and self.problem.softmax else 1.0

    @property
    def coefficient(self) -> float:
        """What multiplies Phi."""
        return self.problem.spec.scale * self.unit

    @property
    def scaled(self) -> bool:
        """Whether query and key are multiplied before their difference is squared."""
        return (
            self.fast
            and self.problem.softmax
            and self.problem.spec.similarity == "squared_difference"
            and self.problem.spec.scale > 0
            and all(dtype.itemsize == 2 for dtype in self.problem.dtypes[:2])
        )

    def centre(self, x: Sequence[Vector]) -> list[Vector]:
        """Prepares the side (query or key) that stays in registers."""
        if self.scaled:
            return [q * math.sqrt(self.coefficient) for q in x]
        if self.problem.spec.similarity == "multiplication":
            return [q * self.coefficient for q in x]
        return list(x)

    def distrusts(self, centre: Sequence[Vector]) -> list[Vector]:
        """Where rounding in `centre` could show in 16-bit results: |q| > 64 / a."""
        return [jnp.abs(q) > 64.0 for q in centre] if self.scaled else []

    def logit(
        self, centre: Sequence[Vector], other: Sequence[Vector], prior: Vector
    ) -> tuple[Vector, list[Vector]]:
        """The logit and, per depth, what `derivative` needs (centre minus other)."""
        if self.problem.spec.similarity == "multiplication":
            return self.alu.dot(centre, other, prior), list(other)
        if self.scaled:
            minus = jnp.full(prior.shape, -math.sqrt(self.coefficient), jnp.float32)
            differences = [self.alu.fma(k, minus, q) for q, k in zip(centre, other, strict=True)]
            for d in differences:
                prior = self.alu.minus_square(prior, d)
            return prior, differences
        differences = [q - k for q, k in zip(centre, other, strict=True)]
        if self.problem.spec.similarity == "squared_difference":
            total = differences[0] * differences[0]
            total = self.alu.dot(differences[1:], differences[1:], total)
        else:
            total = functools.reduce(jnp.add, [jnp.abs(d) for d in differences])
        minus = jnp.full(prior.shape, -self.coefficient, jnp.float32)
        return self.alu.fma(total, minus, prior), differences

    def accumulate(
        self, sums: Sequence[Vector], d_logit: Vector, differences: Sequence[Vector]
    ) -> list[Vector]:
        """Adds the gradient of the centre, short of the constant in `finish`."""
        if self.problem.spec.similarity != "absolute_difference":
            return [
                self.alu.fma(d_logit, d, total) for d, total in zip(differences, sums, strict=True)
            ]
        # Where query and key are equal, JAX's derivative of |query - key| is 1.
        return [
            total + jnp.where(d > 0 if self.of_key else d >= 0, d_logit, -d_logit)
            for d, total in zip(differences, sums, strict=True)
        ]

    def finish(self, total: Vector) -> Vector:
        """The gradient of the centre from what `accumulate` summed."""
        scale = self.problem.spec.scale
        if self.problem.spec.similarity == "squared_difference":
            return total * (-2.0 * scale / (math.sqrt(self.coefficient) if self.scaled else 1.0))
        return total * (-scale if self.problem.spec.similarity == "absolute_difference" else scale)


def far_value(problem: Problem, dtype: np.dtype) -> float:
    """A key so far from every query that its weight is 0; its logit still fits float32.

    A real difference beyond it would overflow to a logit of -inf in every implementation.
    """
    if not problem.far:
        return 0.0
    if dtype == np.float16:
        return math.inf  # replaced after the load: float16 reaches no further than real keys
    reach = 2e38 / (LOG2E * max(problem.spec.scale, 1e-30) * problem.depth)
    return min(math.sqrt(reach) if problem.spec.similarity == "squared_difference" else reach, 1e38)


def depth_vector(problem: Problem, dtype: np.dtype) -> int:
    """Query or key components per memory access."""
    return math.gcd(16 // dtype.itemsize, problem.depth)


def load_depth(
    alu: Alu,
    problem: Problem,
    ref: Any,
    index: Vector,
    mask: Vector | None,
    far: bool = False,
) -> list[Vector]:
    """The D components of a query or key per lane, `far_value` (or 0) where the mask is False."""
    dtype = np.dtype(ref.dtype)
    other = far_value(problem, dtype) if far else 0.0
    late = math.isinf(other)  # float16 cannot hold it
    size = depth_vector(problem, dtype)
    parts: list[Vector] = []
    for start in range(0, problem.depth, size):
        where = span(index, start, size) if size > 1 else index + start
        x = load(ref, where, mask, 0.0 if late else other)
        parts += split(alu.widen(x)) if size > 1 else [alu.widen(x)]
    if late and mask is not None:
        far32 = far_value(problem, np.dtype(np.float32))
        parts = [jnp.where(mask, x, far32) for x in parts]
    return parts


def store_depth(
    alu: Alu, problem: Problem, ref: Any, index: Vector, parts: list[Vector], mask: Vector | None
) -> None:
    """Writes the D components of a query's or key's gradient."""
    for i, part in enumerate(parts):
        store(alu, ref, index + i, part, mask)


def base(index: Vector, multiple: int = 1) -> Vector:
    """An index that the compiler knows to be no less than 0 (and a multiple of something).

    Constants added to it must not be positive. Then no addition can overflow, and LLVM folds them
    into the load instruction; otherwise every load costs two instructions for its address.
    """
    return pl.multiple_of(index & 0x7FFFFFFF, multiple)


@dataclasses.dataclass(frozen=True)
class Channels:
    """Which channels a lane holds: vectors of `problem.vector` from channel `start` on.

    Attributes:
      problem: the problem.
      start: first channel, counted from channel 0.
      masks: for each vector where it exists at all (the last group or chunk may be partial).
    """

    problem: Problem
    start: Vector
    masks: tuple[Vector | None, ...]

    @classmethod
    def of(cls, problem: Problem, group: Vector, chunk: Scalar) -> "Channels":
        """The channels of a chunk of a group."""
        m, size = problem.spec.channels_per_group, problem.vector
        offset = chunk * problem.chunk
        start = group * m + offset
        masks: list[Vector | None] = []
        for first in range(0, problem.chunk, size):
            mask = None
            if problem.channels % m:
                mask = start + first < problem.channels
            if problem.chunks * problem.chunk != m:
                mask = both(mask, jnp.broadcast_to(offset + first < m, start.shape))
            masks.append(mask)
        return cls(problem, start, tuple(masks))

    def bases(self, pixel: Vector) -> list[Vector]:
        """Index of each vector at a pixel; for one that does not exist, of the first vector.

        Reading something in place of nothing needs neither a mask nor zeros; who reads it must
        multiply by zero or not store the result.
        """
        size = self.problem.vector
        index = pixel * self.problem.channels + self.start
        out = []
        for i, exists in enumerate(self.masks):
            offset = i * size if exists is None else jnp.where(exists, i * size, 0)
            out.append(base(index + offset, size))
        return out

    def load_near(
        self, alu: Alu, ref: Any, bases: list[Vector], columns: int, mask: Vector | None
    ) -> list[jax.Array]:
        """The channels `columns` (<= 0) pixels from `bases` as float32 (N, vector) pieces."""
        size, offset = self.problem.vector, columns * self.problem.channels
        return [alu.widen(load(ref, span(index, offset, size), mask)) for index in bases]

    def load(
        self, alu: Alu, ref: Any, bases: list[Vector], columns: int, mask: Vector | None
    ) -> list[jax.Array]:
        """As `load_near`, with 0 for channels that do not exist."""
        size, offset = self.problem.vector, columns * self.problem.channels
        return [
            alu.widen(load(ref, span(index, offset, size), both(mask, exists)))
            for index, exists in zip(bases, self.masks, strict=True)
        ]

    def store(
        self,
        alu: Alu,
        ref: Any,
        bases: list[Vector],
        columns: int,
        pieces: list[jax.Array],
        mask: Vector | None,
    ) -> None:
        """Writes the channels `columns` (<= 0) pixels from `bases`."""
        size, offset = self.problem.vector, columns * self.problem.channels
        for index, piece, exists in zip(bases, pieces, self.masks, strict=True):
            store(alu, ref, span(index, offset, size), piece, both(mask, exists))

    def zeros(self) -> list[jax.Array]:
        """Accumulators."""
        return [jnp.zeros((self.start.shape[0], self.problem.vector), jnp.float32)] * len(
            self.masks
        )


def flatten(pieces: Sequence[jax.Array]) -> list[Vector]:
    """(N, vector) pieces to one vector per channel."""
    return [x for piece in pieces for x in split(piece)]


@dataclasses.dataclass(frozen=True)
class Strips:
    """How lanes cover an image with strips: lane number <-> (image, strip, row, unit).

    Attributes:
      rows: rows of the image.
      columns: its columns.
      strip: R, pixels per lane.
      units: lanes per pixel (groups, or groups times chunks).
      batch: images.
    """

    rows: int
    columns: int
    strip: int
    units: int
    batch: int

    @property
    def per_row(self) -> int:
        """Strips side by side; the last one may stick out."""
        return -(-self.columns // self.strip)

    @property
    def lanes(self) -> int:
        """Lanes with work."""
        return self.batch * self.per_row * self.rows * self.units

    def place(self, lane: Vector) -> tuple[Vector, Vector, Vector, Vector]:
        """(image, row, first column, unit) of a lane."""
        unit, lane = lax.rem(lane, jnp.int32(self.units)), lax.div(lane, jnp.int32(self.units))
        row, lane = lax.rem(lane, jnp.int32(self.rows)), lax.div(lane, jnp.int32(self.rows))
        strip, image = (
            lax.rem(lane, jnp.int32(self.per_row)),
            lax.div(lane, jnp.int32(self.per_row)),
        )
        return image, row, strip * self.strip, unit

    def inside(self, first: Scalar, count: int, low: int, high: int) -> jax.Array:
        """Whether lanes first .. first + count - 1 only hold strips numbered low .. high."""
        per_strip = self.units * self.rows
        last = jnp.minimum(first + count, self.lanes) - 1
        a, b = lax.div(first, jnp.int32(per_strip)), lax.div(last, jnp.int32(per_strip))
        strip = lax.rem(a, jnp.int32(self.per_row))
        return (strip >= low) & (strip + (b - a) <= high)


def scaled_prior(problem: Problem, prior: jax.Array | None) -> list[jax.Array]:
    """The prior as the kernels read it: [] or one flat float32 array, (2, Kh*Kw, G).

    First in units of log 2, then as it is. Groups last, so that a warp reads neighbours.
    Clipped, because 3e38 * log2(e) would overflow.
    """
    if prior is None:
        return []
    natural = prior.astype(jnp.float32).reshape(problem.groups, problem.spec.taps).T
    limit = float(np.finfo(np.float32).max)
    in_log2 = jnp.where(jnp.isinf(natural), natural, jnp.clip(natural * LOG2E, -limit, limit))
    return [jnp.stack([in_log2, natural]).reshape(-1)]


def load_priors(
    problem: Problem, fast: bool, refs: Sequence[Any], row: Any, group: Vector, valid: Vector
) -> list[Vector]:
    """Kw priors of a window row; -inf where the row lies outside the image, so weights are 0."""
    kw = problem.spec.kernel_size[1]
    outside = -math.inf if problem.softmax else 0.0
    if not refs:
        prior = jnp.where(valid, 0.0, outside)
        return [prior] * kw
    start = row * kw + (0 if fast and problem.softmax else problem.spec.taps)
    index = start * problem.groups + group
    return [load(refs[0], index + i * problem.groups, valid, outside) for i in range(kw)]


def loop(count: Scalar, body: Callable[[Any, Any], Any], init: Any) -> Any:
    """`fori_loop`, without a loop for one turn."""
    if isinstance(count, int) and count == 1:
        return body(jnp.int32(0), init)
    return lax.fori_loop(0, count, body, init)
