"""How the programs of a kernel cover the images.

A program is a row of lanes. A lane owns one group (or a chunk of a wide group's channels) and a
strip of R horizontally adjacent pixels. Lanes run over groups first, so that a warp reads whole
cache lines. Then they run down the image. All strips of a program are therefore in one column of
strips, and its code knows without masks which columns of the image exist.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.pallas.lanes.ptx import opaque
from pallas_kernels.pallas.lanes.vectors import Mask, Scalar, Vector, and_masks

Taps = dict[int, list[tuple[int, int]]]
"""Column, counted from a strip's first -> the (pixel of the strip, tap) pairs that use it."""

T = TypeVar("T")

# Each case adds code, and the time to compile it.
MAX_BORDER_CASES = 5
MIN_SHARE = 0.07


class BorderCase(NamedTuple):
    """Strips of which the same columns exist; a kernel has code for each case.

    Attributes:
      strips: their numbers, consecutive if `columns` is known.
      columns: the columns that exist for every one of these strips, while no other column exists
        for any of them. None: columns differ, and the code needs a mask for each.
    """

    strips: tuple[int, ...]
    columns: tuple[int, ...] | None

    def first_column(self, x0: Vector, strip: int) -> Vector:
        """The x0 of a strip of `strip` pixels; a constant if only one strip has this case."""
        return x0 if len(self.strips) > 1 else jnp.full_like(x0, self.strips[0] * strip)

    def existing(self, taps: Taps) -> Taps:
        """The taps that code for this case visits."""
        return taps if self.columns is None else {c: taps[c] for c in self.columns}


def by_border_case(cases: Sequence[BorderCase], strip: Scalar, run: Callable[[BorderCase], T]) -> T:
    """Runs `run` for the case of a strip, chosen on the GPU."""
    case, *others = cases
    if not others:  # cases with masks come last, because their strips need not be consecutive
        return run(case)
    here = (strip >= case.strips[0]) & (strip <= case.strips[-1])
    return lax.cond(here, lambda: run(case), lambda: by_border_case(others, strip, run))


class Place(NamedTuple):
    """Where the lanes of a program work.

    Attributes:
      image: number in the batch.
      row: of the image.
      x0: first column of the strip.
      unit: group, or chunk of a group.
      active: which lanes have work.
    """

    image: Vector
    row: Vector
    x0: Vector
    unit: Vector
    active: Mask


@dataclasses.dataclass(frozen=True)
class Strips:
    """The assignment of strips to programs.

    All lanes of a program work on strips at the same horizontal position. They run over units, then
    rows, then a few images. The next program takes the next lanes of the same column of strips,
    then come the next column of strips and the next images. So what adjacent strips share is still
    in the L2 cache.

    Attributes:
      rows: height of the images.
      columns: width of the images.
      strip: R, pixels per lane.
      units: units of work per pixel: groups, or groups times chunks.
      batch: number of images.
      lanes_per_program: a multiple of 32.
      phases: rows are visited in steps of this number, first those that are multiples of it. It
        divides `rows`.
      parts: how many parts the lanes of a column of strips are cut into. A program takes lanes of
        each part, one part after the other, always of the same unit.
    """

    rows: int
    columns: int
    strip: int
    units: int
    batch: int
    lanes_per_program: int
    phases: int = 1
    parts: int = 1

    @property
    def strips_per_row(self) -> int:
        """Number of strips side by side."""
        return -(-self.columns // self.strip)

    @property
    def ragged(self) -> bool:
        """Whether the last strip of a row reaches beyond the image."""
        return self.columns % self.strip > 0

    @property
    def images_per_round(self) -> int:
        """Images that share programs; if possible so many that every lane has work."""
        image = self.rows * self.units
        fitting = [
            n for n in range(1, 33) if not (self.batch % n or n * image % self.lanes_per_program)
        ]
        return fitting[0] if fitting else min(8, self.batch)

    @property
    def lanes(self) -> int:
        """Lanes of one column of strips, for the images of one round."""
        return self.images_per_round * self.rows * self.units

    @property
    def lanes_per_part(self) -> int:
        """Lanes of one part; the last part may have fewer active ones."""
        return -(-self.images_per_round * self.rows // self.parts) * self.units

    @property
    def grid(self) -> tuple[int, int, int]:
        """Programs per part and column of strips, columns of strips, rounds of images."""
        along = pl.cdiv(self.lanes_per_part, self.lanes_per_program)
        return along, self.strips_per_row, -(-self.batch // self.images_per_round)

    def place(self, first: Scalar, strip: Scalar, images: jax.Array, part: Scalar = 0) -> Place:
        """Where a program works.

        Args:
          first: its first lane, counted in its part.
          strip: number of its column of strips.
          images: number of its round of images.
          part: number of the part.
        """
        lane = first + jnp.arange(self.lanes_per_program, dtype=jnp.int32)
        active: Mask = None
        if self.lanes_per_part % self.lanes_per_program:
            active = lane < self.lanes_per_part
        lane = part * self.lanes_per_part + lane
        if self.lanes_per_part * self.parts > self.lanes:
            active = and_masks(active, lane < self.lanes)
        # Recomputed in each round, because keeping it across rounds would cost registers.
        lane = opaque(jnp.minimum(lane, self.lanes - 1), images)
        image, row, unit = self._coordinates(lane)
        image = images * self.images_per_round + image
        if self.batch % self.images_per_round:
            active = and_masks(active, image < self.batch)
            image = jnp.minimum(image, self.batch - 1)
        x0 = jnp.full((self.lanes_per_program,), strip * self.strip, jnp.int32)
        return Place(image, row, x0, unit, active)

    def _coordinates(self, lane: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(image, row, unit) of a lane, which is not negative."""
        lane, digits = lane.astype(jnp.uint32), []  # unsigned divisions are cheaper
        for size in (self.units, self.rows // self.phases, self.phases):
            digits.append(lax.rem(lane, jnp.uint32(size)).astype(jnp.int32))
            lane = lax.div(lane, jnp.uint32(size))
        unit, row, phase = digits
        return lane.astype(jnp.int32), row * self.phases + phase, unit

    def row_range(self, first: Scalar) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Bounds of the rows of lanes first .. first + lanes_per_program - 1, all parts counted.

        Returns:
          The lowest row, the highest row, and whether all rows are of one phase.
        """
        a = jnp.minimum(first, self.lanes - 1)
        b = jnp.minimum(first + self.lanes_per_program, self.lanes) - 1
        run = jnp.int32(self.rows // self.phases * self.units)
        same_phase = lax.div(a, run) == lax.div(b, run)
        low, high = self._coordinates(a)[1], self._coordinates(b)[1]
        low, high = jnp.where(same_phase, low, 0), jnp.where(same_phase, high, self.rows - 1)
        return low, high, same_phase

    def border_cases(
        self, step: int, start: int, columns: Iterable[int], limit: int
    ) -> list[BorderCase]:
        """The cases for which a kernel needs code; every strip has exactly one.

        Strips at the border use fewer columns. Where they are a sizeable share of all strips,
        separate code saves the masks, and the arithmetic on columns that do not exist.

        Args:
          step: columns from a strip's first to that of the next strip.
          start: number in the image of column 0 of the first strip.
          columns: what a strip uses, counted from its column 0.
          limit: columns 0 .. limit - 1 of the image exist.
        """
        found: dict[tuple[int, ...], list[int]] = {}
        masked = []
        for strip in range(self.strips_per_row):
            existing = tuple(c for c in columns if 0 <= start + strip * step + c < limit)
            if (strip + 1) * self.strip > self.columns:
                masked.append(strip)  # it reaches beyond the image
            else:
                found.setdefault(existing, []).append(strip)
        cases = []
        for existing, strips in found.items():
            if len(strips) < MIN_SHARE * self.strips_per_row:
                masked += strips
            else:
                cases.append(BorderCase(tuple(strips), existing))
        if len(cases) + bool(masked) > MAX_BORDER_CASES:
            cases, masked = [], list(range(self.strips_per_row))
        return cases + ([BorderCase(tuple(masked), None)] if masked else [])
