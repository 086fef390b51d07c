"""What a lane of the GPU kernels owns and how it reaches memory.

A program is a flat row of lanes, one per thread. A lane owns one group (or a chunk of a wide
group's channels) and a STRIP of R horizontally adjacent pixels; everything it needs lives in its
registers as Python lists of 1-d arrays, so a loaded key or value serves up to Kw pixels. Lanes run
over groups first, so that a warp reads whole cache lines, then down the image, so that a program
mostly sits in one column of strips: away from the left and right border it needs no masks.

Only this file, gpu_arithmetic.py and the two kernel files know Pallas-Triton. The bodies above it
are plain array code; a twin through jax-triton or Mosaic would replace `Alu`, `load` and `store`
and keep the rest.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.gpu_arithmetic import Alu
from pallas_kernels.gpu_problem import LOG2E, Problem, Vector

Scalar = jax.Array | int


def load(ref: Any, index: jax.Array, mask: Vector | None = None, other: Any = 0) -> jax.Array:
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


def result(like: jax.Array, size: int, dtype: Any) -> jax.ShapeDtypeStruct:
    """A flat array for a kernel to write, which differs between devices where `like` does."""
    kind = jax.typeof(like).manual_axis_type
    return jax.ShapeDtypeStruct((size,), dtype, manual_axis_type=kind)


def span(index: Vector, start: int, size: int) -> jax.Array:
    """Indices of `size` neighbouring elements per lane: (N, size)."""
    return index[:, None] + start + jnp.arange(size, dtype=jnp.int32)[None, :]


def split(x: jax.Array) -> list[Vector]:
    """(N, c), c a power of two, to c vectors: renames registers, moves nothing."""
    if x.ndim == 1:
        return [x]
    if x.shape[1] == 2:
        return list(jnp.unstack(x, axis=-1))
    even, odd = (split(half) for half in jnp.unstack(x.reshape(x.shape[0], -1, 2), axis=-1))
    return [part for pair in zip(even, odd, strict=True) for part in pair]


def join(a: Vector, b: Vector) -> jax.Array:
    """Two vectors to (N, 2)."""
    return jnp.stack([a, b], axis=1)


def both(a: Vector | None, b: Vector | None) -> Vector | None:
    """The conjunction of two masks; None is True."""
    if a is None or b is None:
        return b if a is None else a
    return a & b


def base(index: Vector, multiple: int = 1) -> Vector:
    """An index that the compiler knows to be no less than 0 (and a multiple of something).

    Constants added to it must not be positive. Then no addition can overflow, and LLVM folds them
    into the load instruction; otherwise every load costs two instructions for its address.
    """
    return pl.multiple_of(index & 0x7FFFFFFF, multiple)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a lane reads and writes a flat array of floats, some neighbouring ones at a time.

    16-bit floats travel in pairs, as 32-bit words, where they can: a word is one register, and its
    halves widen to float32 with one instruction each.

    Attributes:
      dtype: of the floats.
      size: floats per access.
    """

    dtype: np.dtype
    size: int

    @classmethod
    def depth(cls, problem: Problem, array: int) -> "Layout":
        """Of queries (0) or keys (1): the D numbers of a pixel and group, in accesses."""
        dtype = problem.dtypes[array]
        return cls(dtype, math.gcd(16 // dtype.itemsize, problem.depth))

    @classmethod
    def channels(cls, problem: Problem) -> "Layout":
        """Of values, outputs and their gradients."""
        return cls(problem.dtypes[2], problem.vector)

    @property
    def unit(self) -> int:
        """Floats per element of the array in memory."""
        return 2 if self.dtype.itemsize == 2 and self.size % 2 == 0 else 1

    def to_memory(self, x: jax.Array) -> jax.Array:
        """An array as the kernel reads it; moves nothing."""
        if self.unit == 1:
            return x.reshape(-1)
        return lax.bitcast_convert_type(x.reshape(-1, 2), jnp.int32)

    def result(self, like: jax.Array, floats: int) -> jax.ShapeDtypeStruct:
        """The array that a kernel writes; like an argument in what `jax.shard_map` knows of it."""
        return result(like, floats // self.unit, self.dtype if self.unit == 1 else jnp.int32)

    def from_memory(self, x: jax.Array, shape: Sequence[int]) -> jax.Array:
        """The opposite of `to_memory`."""
        if self.unit == 2:
            x = lax.bitcast_convert_type(x, self.dtype)
        return x.reshape(shape)

    def base(self, index: Vector) -> Vector:
        """A multiple of `size`, counted in floats, to count from in `load` and `store`."""
        if self.unit == 2:
            index = lax.shift_right_logical(index, jnp.int32(1))
        return base(index, self.size // self.unit)

    def load(
        self,
        alu: Alu,
        ref: Any,
        places: Sequence[tuple[Vector, int]],
        mask: Vector | Sequence[Vector | None] | None,
        other: float = 0.0,
    ) -> list[Vector]:
        """`size` floats from each place per lane as float32, `other` where the mask is False.

        Args:
          alu: arithmetic.
          ref: the array in memory.
          places: (what `base` gave, offset in floats: a multiple of `size`, not positive).
          mask: lanes that read, for each place or all.
          other: a number of `dtype`.
        """
        masks = mask if isinstance(mask, Sequence) else [mask] * len(places)
        count = self.size // self.unit
        fill: Any = np.asarray(other, self.dtype)
        if self.unit == 2:
            fill = np.full(2, fill).view(np.int32)[0]
        parts: list[jax.Array] = []
        for (start, offset), mask in zip(places, masks, strict=True):
            offset //= self.unit
            index = span(start, offset, count) if count > 1 else start + offset
            parts += split(load(ref, index, mask, fill))
        if self.unit == 1:
            return [part.astype(jnp.float32) for part in parts]

        def widen(ops: Any, words: Any) -> Any:
            return [half for word in words for half in ops.widen(word, self.dtype)]

        return alu.fuse(widen, parts)

    def store(
        self,
        alu: Alu,
        ref: Any,
        start: Vector,
        offset: int,
        parts: Sequence[Vector],
        mask: Vector | None,
    ) -> None:
        """Writes `size` float32 numbers per lane; the arguments of `load`."""
        offset //= self.unit
        if self.unit == 2:

            def narrow(ops: Any, parts: Any) -> Any:
                pairs = zip(parts[::2], parts[1::2], strict=True)
                return [ops.narrow(low, high, self.dtype) for low, high in pairs]

            parts = alu.fuse(narrow, list(parts), words=True)
        if len(parts) % 2:
            for i, part in enumerate(parts):
                store(alu, ref, start + (offset + i), part, mask)
        else:
            for i in range(0, len(parts), 2):
                pair = join(parts[i], parts[i + 1])
                store(alu, ref, span(start, offset + i, 2), pair, mask)


def depth_base(problem: Problem, layout: Layout, place: Vector) -> Vector:
    """Where `load_depth` counts from; place is pixel * G + group."""
    return layout.base(place * problem.depth + (problem.depth - layout.size))


def load_depth(
    alu: Alu,
    problem: Problem,
    layout: Layout,
    ref: Any,
    start: Vector,
    places: int,
    mask: Vector | None,
    far: int = 0,
) -> list[Vector]:
    """The D components of a query or key per lane.

    Args:
      alu: arithmetic.
      problem: the problem.
      layout: of the array.
      ref: the array in memory.
      start: from `depth_base`.
      places: how many (pixel, group) before it, not positive.
      mask: lanes that read.
      far: 1 or -1 for `far_value` or its opposite where the mask is False, 0 for 0.
    """
    other = far * problem.far_value(layout.dtype) if far else 0.0
    late = math.isinf(other)  # float16 cannot hold it
    end = places * problem.depth
    at = [(start, end + i) for i in range(layout.size - problem.depth, 1, layout.size)]
    parts = layout.load(alu, ref, at, mask, 0.0 if late else other)
    if late and mask is not None:
        far32 = far * problem.far_value(np.dtype(np.float32))
        parts = [jnp.where(mask, x, far32) for x in parts]
    return parts


def store_depth(
    alu: Alu,
    layout: Layout,
    ref: Any,
    start: Vector,
    places: int,
    parts: Sequence[Vector],
    mask: Vector | None,
) -> None:
    """Writes the D components of a query's or key's gradient; the arguments of `load_depth`."""
    depth = len(parts)
    for first in range(0, depth, layout.size):
        offset = places * depth + first + layout.size - depth
        layout.store(alu, ref, start, offset, parts[first : first + layout.size], mask)


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
        layout = Layout.channels(self.problem)
        index = pixel * self.problem.channels + self.start
        out = []
        for i, exists in enumerate(self.masks):
            offset = i * layout.size if exists is None else jnp.where(exists, i * layout.size, 0)
            out.append(layout.base(index + offset))
        return out

    def load(
        self,
        alu: Alu,
        ref: Any,
        bases: list[Vector],
        columns: int,
        mask: Vector | None,
        exact: bool = True,
    ) -> list[Vector]:
        """The channels `columns` (<= 0) pixels from `bases` as float32, 0 where masked.

        Channels that do not exist are 0 too if `exact`, else anything.
        """
        layout, offset = Layout.channels(self.problem), columns * self.problem.channels
        masks = [both(mask, exists) if exact else mask for exists in self.masks]
        return layout.load(alu, ref, [(start, offset) for start in bases], masks)

    def store(
        self,
        alu: Alu,
        ref: Any,
        bases: list[Vector],
        columns: int,
        parts: Sequence[Vector],
        mask: Vector | None,
    ) -> None:
        """Writes the channels `columns` (<= 0) pixels from `bases`."""
        layout, offset = Layout.channels(self.problem), columns * self.problem.channels
        for i, (index, exists) in enumerate(zip(bases, self.masks, strict=True)):
            piece = parts[i * layout.size : (i + 1) * layout.size]
            layout.store(alu, ref, index, offset, piece, both(mask, exists))


@dataclasses.dataclass(frozen=True)
class Strips:
    """How lanes cover an image with strips: lane number <-> (image, strip, row, unit).

    Attributes:
      rows: rows of the image.
      columns: its columns.
      strip: R, pixels per lane.
      units: what lies side by side in a pixel: groups (or groups times chunks).
      batch: images.
      phases: rows are taken every `phases`-th first; divides `rows`.
    """

    rows: int
    columns: int
    strip: int
    units: int
    batch: int
    phases: int = 1

    @property
    def per_row(self) -> int:
        """Strips side by side; the last one may stick out."""
        return -(-self.columns // self.strip)

    @property
    def per_image(self) -> int:
        """Lanes with work on one image."""
        return self.per_row * self.rows * self.units

    @property
    def lanes(self) -> int:
        """Lanes with work."""
        return self.batch * self.per_image

    def place(self, lane: Vector) -> tuple[Vector, Vector, Vector, Vector]:
        """(image, row, first column, unit) of a lane."""
        unit, lane = lax.rem(lane, jnp.int32(self.units)), lax.div(lane, jnp.int32(self.units))
        row, lane = lax.rem(lane, jnp.int32(self.rows)), lax.div(lane, jnp.int32(self.rows))
        strip, image = (
            lax.rem(lane, jnp.int32(self.per_row)),
            lax.div(lane, jnp.int32(self.per_row)),
        )
        if self.phases > 1:
            per_phase = jnp.int32(self.rows // self.phases)
            row = lax.rem(row, per_phase) * self.phases + lax.div(row, per_phase)
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
    """`fori_loop`; a single turn is no loop, and its number a Python int."""
    if isinstance(count, int) and count == 1:
        return body(0, init)
    return lax.fori_loop(0, count, body, init)
