"""How the programs of the GPU kernels cover the images, and what code they need where.

A program is a flat row of lanes, one per thread. A lane owns one group (or a chunk of a wide
group's channels) and a STRIP of R horizontally adjacent pixels. Lanes run over groups first, so
that a warp reads whole cache lines, then down the image, so that a program sits in one column of
strips: what lies beyond the left and right border is known without masks.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.pallas.arithmetic import opaque
from pallas_kernels.pallas.lanes import Scalar, both
from pallas_kernels.pallas.problem import Vector


class Form(NamedTuple):
    """Strips for which a kernel has code of its own.

    Attributes:
      strips: their numbers; neighbours if `columns` is known.
      columns: of the columns that a strip looks at, those that exist for every one of these strips,
        while no other exists for any; None: each lane must ask.
    """

    strips: tuple[int, ...]
    columns: tuple[int, ...] | None

    def first_column(self, x0: Vector, strip: int) -> Vector:
        """x0 of a strip of `strip` pixels; a constant if only one strip has the form."""
        return x0 if len(self.strips) > 1 else jnp.full_like(x0, self.strips[0] * strip)

    def existing(self, columns: dict[int, Any]) -> dict[int, Any]:
        """Of the columns that a strip looks at, those that code for this form has to visit."""
        return columns if self.columns is None else {c: columns[c] for c in self.columns}


class Place(NamedTuple):
    """Where lanes work: each an array with a number per lane."""

    image: Vector
    row: Vector
    x0: Vector  # first column
    unit: Vector
    live: Vector | None  # lanes with work; None: all


# Code grows with every form, and compile time with it.
MOST_FORMS = 5
SMALLEST_SHARE = 0.07


@dataclasses.dataclass(frozen=True)
class Strips:
    """How programs cover the images with strips.

    A program's lanes all work on strips at one place from left to right, so they share their
    columns. They run over units, then rows, then some images; programs next to each other take
    the next of these lanes, then the next strip, so that what neighbouring strips share stays in
    the L2 cache, then other images.

    Attributes:
      rows: rows of the image.
      columns: its columns.
      strip: R, pixels per lane.
      units: what lies side by side in a pixel: groups (or groups times chunks).
      batch: images.
      per_program: lanes per program.
      phases: rows are taken every `phases`-th first; divides `rows`.
      parts: what the lanes of a strip are cut into; a program takes its lanes of each, one part
        after the other, of equal units.
    """

    rows: int
    columns: int
    strip: int
    units: int
    batch: int
    per_program: int
    phases: int = 1
    parts: int = 1

    @property
    def per_row(self) -> int:
        """Strips side by side; the last one may stick out."""
        return -(-self.columns // self.strip)

    @property
    def together(self) -> int:
        """Images whose lanes of one strip lie side by side: if it can be, so that all have work."""
        image = self.rows * self.units
        fit = [n for n in range(1, 33) if not (self.batch % n or n * image % self.per_program)]
        return fit[0] if fit else min(8, self.batch)

    @property
    def lanes(self) -> int:
        """Lanes of one strip of the images together."""
        return self.together * self.rows * self.units

    @property
    def part(self) -> int:
        """Lanes of a part; the last one may have less work."""
        return -(-self.together * self.rows // self.parts) * self.units

    @property
    def grid(self) -> tuple[int, int, int]:
        """Programs: along the lanes, strips, rounds of images."""
        return pl.cdiv(self.part, self.per_program), self.per_row, -(-self.batch // self.together)

    def place(self, first: Scalar, strip: Scalar, images: jax.Array, part: Scalar = 0) -> Place:
        """Where a program works.

        Args:
          first: of its lanes of a part.
          strip: number of its strip.
          images: number of its round of images.
          part: number of the part.
        """
        lane = first + jnp.arange(self.per_program, dtype=jnp.int32)
        live = None if self.part % self.per_program == 0 else lane < self.part
        lane = part * self.part + lane
        if self.part * self.parts > self.lanes:
            live = both(live, lane < self.lanes)
        # Found again in each round: to keep it would cost registers.
        image, row, unit = self._digits(opaque(jnp.minimum(lane, self.lanes - 1), images))
        image = images * self.together + image
        if self.batch % self.together:
            live = both(live, image < self.batch)
            image = jnp.minimum(image, self.batch - 1)
        x0 = jnp.full((self.per_program,), strip * self.strip, jnp.int32)
        return Place(image, row, x0, unit, live)

    def _digits(self, lane: Any) -> tuple[Any, Any, Any]:
        """(image, row, unit) of a lane that is no less than 0."""
        lane, digits = lane.astype(jnp.uint32), []  # unsigned divisions are cheaper
        for size in (self.units, self.rows // self.phases, self.phases):
            digits.append(lax.rem(lane, jnp.uint32(size)).astype(jnp.int32))
            lane = lax.div(lane, jnp.uint32(size))
        unit, row, phase = digits
        return lane.astype(jnp.int32), row * self.phases + phase, unit

    def row_range(self, first: Scalar) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(lowest, highest row, whether of one phase) of lanes first .. first + per_program - 1.

        Lanes are counted from the first part on.
        """
        a = jnp.minimum(first, self.lanes - 1)
        b = jnp.minimum(first + self.per_program, self.lanes) - 1
        run = jnp.int32(self.rows // self.phases * self.units)
        alike = lax.div(a, run) == lax.div(b, run)
        low, high = self._digits(a)[1], self._digits(b)[1]
        return jnp.where(alike, low, 0), jnp.where(alike, high, self.rows - 1), alike

    def forms(self, step: int, start: int, columns: Iterable[int], limit: int) -> list[Form]:
        """The forms of code that a kernel needs; every strip has one.

        Strips at the border look at fewer columns. Where such a strip is a good part of all, code
        that knows which ones saves the masks and the arithmetic on nothing.

        Args:
          step: how many of the columns that it looks at a strip lies beyond its neighbour.
          start: column number 0 of the first strip.
          columns: numbers of what a strip looks at.
          limit: columns 0 .. limit - 1 exist.
        """
        found: dict[tuple[int, ...], list[int]] = {}
        masked = []
        for strip in range(self.per_row):
            there = tuple(c for c in columns if 0 <= start + strip * step + c < limit)
            if (strip + 1) * self.strip > self.columns:
                masked.append(strip)  # it sticks out
            else:
                found.setdefault(there, []).append(strip)
        forms = []
        for there, strips in found.items():
            if len(strips) < SMALLEST_SHARE * self.per_row:
                masked += strips
            else:
                forms.append(Form(tuple(strips), there))
        if len(forms) + bool(masked) > MOST_FORMS:
            forms, masked = [], list(range(self.per_row))
        return forms + ([Form(tuple(masked), None)] if masked else [])


def by_form(forms: Sequence[Form], strip: Scalar, run: Callable[[Form], Any]) -> Any:
    """What `run` returns for the form that a strip has."""
    form, *others = forms
    if not others:  # also the place of the form with masks, whose strips need not be neighbours
        return run(form)
    here = (strip >= form.strips[0]) & (strip <= form.strips[-1])
    return lax.cond(here, lambda: run(form), lambda: by_form(others, strip, run))
