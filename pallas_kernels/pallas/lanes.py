"""How a lane of the GPU kernels reaches memory.

Everything a lane needs lives in its registers, as Python lists of 1-d arrays with a number per
lane, so a loaded key or value serves up to Kw pixels of its strip.

Only this file, arithmetic.py, strips.py and the kernels know Pallas-Triton. The bodies are
plain array code; a twin through jax-triton or Mosaic would replace `Alu`, `load` and `store` and
keep the rest.
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

from pallas_kernels.pallas.arithmetic import Alu, opaque
from pallas_kernels.pallas.problem import LOG2E, Problem, Vector

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
    # In this order, so that spans from one index share all but the last addition.
    return index[:, None] + jnp.arange(size, dtype=jnp.int32)[None, :] + start


def split(x: jax.Array) -> list[Vector]:
    """(N, c), c a power of two, to c vectors: renames registers, moves nothing."""
    if x.ndim == 1:
        return [x]
    if x.shape[1] == 2:
        return list(jnp.unstack(x, axis=-1))
    even, odd = (split(half) for half in jnp.unstack(x.reshape(x.shape[0], -1, 2), axis=-1))
    return [part for pair in zip(even, odd, strict=True) for part in pair]


def join(parts: Sequence[Vector]) -> jax.Array:
    """The opposite of `split`."""
    if len(parts) == 1:
        return parts[0]
    if len(parts) == 2:
        return jnp.stack(parts, axis=1)
    halves = jnp.stack([join(parts[::2]), join(parts[1::2])], axis=-1)
    return halves.reshape(halves.shape[0], -1)


def both(a: Vector | None, b: Vector | None) -> Vector | None:
    """The conjunction of two masks; None is True."""
    if a is None or b is None:
        return b if a is None else a
    return a & b


def base(index: Vector, multiple: int = 1) -> Vector:
    """An index that the compiler knows to be no less than 0 (and a multiple of something).

    Constants added to it must not be positive. Then no addition can overflow, and LLVM folds them
    into the load instruction; otherwise every load costs two instructions for its address. (Opaque,
    because where it also sees that the sum is no less than 0 it rewrites the addition such that the
    folding fails.)
    """
    return pl.multiple_of(opaque(index) & 0x7FFFFFFF, multiple)


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
        index = span(start, offset, len(parts)) if len(parts) > 1 else start + offset
        store(alu, ref, index, join(parts), mask)


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
      masks: for each vector where it exists at all (the last group or chunk may be partial); None
        for all lanes.
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
        if problem.chunks == 1:  # even the last group has the first ones
            always = problem.channels % m or m
            whole = None if always == m else start + m <= problem.channels
            masks = [None if i < always else whole for i in range(0, m, size)]
            return cls(problem, start, tuple(masks))
        for first in range(0, problem.chunk, size):
            mask = None
            if problem.channels % m:
                mask = start + first < problem.channels
            if problem.chunks * problem.chunk != m:
                mask = both(mask, jnp.broadcast_to(offset + first < m, start.shape))
            masks.append(mask)
        return cls(problem, start, tuple(masks))

    def bases(self, pixel: Vector) -> list[tuple[Vector, int]]:
        """(base, offset) of each vector at a pixel; for one that does not exist, of some other.

        Reading something in place of nothing needs neither a mask nor zeros; who reads it must
        multiply by zero or not store the result.
        """
        layout, size = Layout.channels(self.problem), self.problem.vector
        index = pixel * self.problem.channels + self.start
        always = self.masks.count(None)
        maybe = len(self.masks) - always
        out: list[tuple[Vector, int]] = []
        if self.problem.chunks > 1 or self.problem.channels < self.problem.spec.channels_per_group:
            for i, exists in enumerate(self.masks):
                offset = i * size if exists is None else jnp.where(exists, i * size, 0)
                out.append((layout.base(index + offset), 0))
            return out
        # Vectors that exist in the same groups share a base. Where a group has none of the last
        # ones, its lanes read the first ones, and those of the group before if there are too few.
        base_of_first = layout.base(index + (always - 1) * size)
        out = [(base_of_first, (i - always + 1) * size) for i in range(always)]
        exists = self.masks[-1]
        if exists is not None:
            instead = min(maybe, always) - 1
            last = jnp.where(exists, (len(self.masks) - 1) * size, instead * size)
            base_of_last = layout.base(index + last)
            out += [(base_of_last, (i - maybe + 1) * size) for i in range(maybe)]
        return out

    def load(
        self,
        alu: Alu,
        ref: Any,
        bases: list[tuple[Vector, int]],
        columns: int,
        mask: Vector | None,
        exact: bool = True,
    ) -> list[Vector]:
        """The channels `columns` (<= 0) pixels from `bases` as float32, 0 where masked.

        Channels that do not exist are 0 too if `exact`, else anything.
        """
        layout, away = Layout.channels(self.problem), columns * self.problem.channels
        masks = [both(mask, exists) if exact else mask for exists in self.masks]
        return layout.load(alu, ref, [(start, offset + away) for start, offset in bases], masks)

    def store(
        self,
        alu: Alu,
        ref: Any,
        bases: list[tuple[Vector, int]],
        columns: int,
        parts: Sequence[Vector],
        mask: Vector | None,
    ) -> None:
        """Writes the channels `columns` (<= 0) pixels from `bases`."""
        layout, away = Layout.channels(self.problem), columns * self.problem.channels
        for i, ((start, offset), exists) in enumerate(zip(bases, self.masks, strict=True)):
            piece = parts[i * layout.size : (i + 1) * layout.size]
            layout.store(alu, ref, start, offset + away, piece, both(mask, exists))


PRIORS = 4  # a lane reads so many at a time, 16 bytes


def padded(kw: int) -> int:
    """Numbers in memory for a window row of `kw` taps."""
    return -(-kw // PRIORS) * PRIORS


def scaled_prior(problem: Problem, prior: jax.Array | None) -> list[jax.Array]:
    """The prior as the kernels read it: [] or one flat float32 array, (2, Kh + 1, G, Kw padded).

    First in units of log 2, then as it is. The additional row is that of windows rows outside the
    image: -inf, so that weights are 0 (without softmax 0, and values must be masked). Clipped,
    because 3e38 * log2(e) would overflow.
    """
    if prior is None:
        return []
    _, kw = problem.spec.kernel_size
    outside = -math.inf if problem.softmax else 0.0
    natural = jnp.swapaxes(prior.astype(jnp.float32), 0, 1)  # (Kh, G, Kw)
    natural = jnp.pad(natural, ((0, 0), (0, 0), (0, padded(kw) - kw)))
    natural = jnp.pad(natural, ((0, 1), (0, 0), (0, 0)), constant_values=outside)
    limit = float(np.finfo(np.float32).max)
    in_log2 = jnp.where(jnp.isinf(natural), natural, jnp.clip(natural * LOG2E, -limit, limit))
    return [jnp.stack([in_log2, natural]).reshape(-1)]


def load_priors(
    problem: Problem, fast: bool, refs: Sequence[Any], row: Any, group: Vector, valid: Vector
) -> list[Vector]:
    """Kw priors of a window row; such that weights are 0 where the row lies outside the image."""
    kh, kw = problem.spec.kernel_size
    if not refs:
        prior = jnp.where(valid, 0.0, -math.inf if problem.softmax else 0.0)
        return [prior] * kw
    row = jnp.where(valid, row, kh) + (0 if fast and problem.softmax else kh + 1)
    last = padded(kw) - PRIORS
    start = base((row * problem.groups + group) * padded(kw) + last, PRIORS)
    vectors = [load(refs[0], span(start, i - last, PRIORS)) for i in range(0, kw, PRIORS)]
    return [prior for vector in vectors for prior in split(vector)][:kw]


def loop(count: Scalar, body: Callable[[Any, Any], Any], init: Any, start: Scalar = 0) -> Any:
    """`fori_loop`; a single turn is no loop, and its number a Python int."""
    if isinstance(count, int) and isinstance(start, int) and count - start == 1:
        return body(start, init)
    return lax.fori_loop(start, count, body, init)
