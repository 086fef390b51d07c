"""A lane's strip of output pixels and the keys and values around it.

What the forward kernel and the query kernel of the backward pass have in common.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.pallas.arithmetic import Alu, opaque
from pallas_kernels.pallas.lanes import (
    Channels,
    Layout,
    Scalar,
    base,
    both,
    depth_base,
    load_depth,
    span,
    store_depth,
)
from pallas_kernels.pallas.problem import Problem, Vector
from pallas_kernels.pallas.strips import Form, Place, Strips
from pallas_kernels.pallas.tiling import Tile


@dataclasses.dataclass(frozen=True)
class Row:
    """A window row: bases of the last column's key and (per vector of channels) value.

    Attributes:
      keys: for `OutputStrip.load_key`.
      values: for `OutputStrip.load_value`.
      valid: whether the row lies in the image; if not, the bases are those of one that does.
    """

    keys: Vector
    values: list[tuple[Vector, int]]
    valid: Vector


class OutputStrip:
    """`count` output pixels per lane, side by side.

    Args:
      problem: the problem.
      alu: arithmetic.
      place: of each lane; a unit is a group, or a chunk of one.
      count: pixels.
      ragged: whether pixels may lie beyond the right border.
      form: of the strip; None: any column of keys may lie outside the image.
    """

    def __init__(
        self,
        problem: Problem,
        alu: Alu,
        place: Place,
        count: int,
        ragged: bool,
        form: Form | None = None,
    ):
        self.problem, self.alu, self.count, self.ragged = problem, alu, count, ragged
        self.form = form
        self.image, self.y, self.x0, self.group, self.live = place
        ho, wo = problem.out_size
        self.fits = [self.x0 + i < wo if ragged else None for i in range(count)]
        """Which pixels lie in the image; None for all."""
        self.ok = [both(self.live, fits) for fits in self.fits]
        """Which pixels are work: in the image and of a lane with work."""
        self.last_pixel = (self.image * ho + self.y) * wo + self.x0 + (count - 1)
        """Number of the last pixel, counted over the whole batch."""
        last_place = self.last_pixel * problem.groups + self.group
        self._places = base(last_place)
        self._pairs = base(2 * last_place, 2)
        self._layout = Layout.depth(problem, 0)
        self._queries = depth_base(problem, self._layout, last_place)
        self.masked = form is None or form.columns is None
        columns = window_columns(problem, count)
        self.taps = form.existing(columns) if form else columns
        """Columns of keys; see `window_columns`."""

    def anew(self) -> "OutputStrip":
        """The same, with indices that are computed again: for stores after a loop.

        Those from before it would take registers in between, and LLVM would share the sums of
        bases and offsets with the loads, each for two registers and four instructions.
        """
        place = Place(opaque(self.image), self.y, self.x0, self.group, self.live)
        return OutputStrip(self.problem, self.alu, place, self.count, self.ragged, self.form)

    def pixel(self, i: Scalar) -> "OutputStrip":
        """One of the pixels, as a strip of its own."""
        place = Place(self.image, self.y, self.x0 + i, self.group, self.live)
        return OutputStrip(self.problem, self.alu, place, 1, self.ragged)

    def of_form(self, form: Form) -> "OutputStrip":
        """The same for code of one form, whose strips do not stick out if its columns are known."""
        x0 = form.first_column(self.x0, self.count)
        place = Place(self.image, self.y, x0, self.group, self.live)
        ragged = self.ragged and form.columns is None
        return OutputStrip(self.problem, self.alu, place, self.count, ragged, form)

    def back(self, i: int) -> int:
        """Pixels from the last one to pixel i; not positive."""
        return i + 1 - self.count

    def place(self, i: int) -> Vector:
        """Index of pixel i where there is one number per pixel and group."""
        return self._places + self.back(i) * self.problem.groups

    def pair(self, i: int) -> jax.Array:
        """Indices (N, 2) of pixel i where there are two numbers per pixel and group."""
        return span(self._pairs, 2 * self.back(i) * self.problem.groups, 2)

    def load_query(self, ref: Any, i: int) -> list[Vector]:
        """The query of pixel i; beyond the image one that is far from all keys."""
        places = self.back(i) * self.problem.groups
        # Far on the other side than keys beyond the image are.
        return load_depth(
            self.alu, self.problem, self._layout, ref, self._queries, places, self.fits[i], far=-1
        )

    def store_query(self, ref: Any, i: int, parts: list[Vector]) -> None:
        """Writes the gradient of a query."""
        places = self.back(i) * self.problem.groups
        store_depth(self.alu, self._layout, ref, self._queries, places, parts, self.ok[i])

    def row(self, number: Any, channels: Channels) -> Row:
        """A row of the windows."""
        spec, problem = self.problem.spec, self.problem
        yi = self.y * spec.stride + number * spec.dilation - spec.padding[0]
        clamped = jnp.clip(yi, 0, problem.height - 1)
        end = (self.image * problem.height + clamped) * problem.width
        end += self.x0 * spec.stride + (max(self.taps) - spec.padding[1])
        keys = depth_base(problem, Layout.depth(problem, 1), end * problem.groups + self.group)
        return Row(keys, channels.bases(end), (yi >= 0) & (yi < problem.height))

    def column_mask(self, column: int) -> Vector | None:
        """Whether a column of keys lies in the image; None if it does for all lanes."""
        if not self.masked:
            return None
        spec = self.problem.spec
        x = (self.x0 * spec.stride + (column - spec.padding[1])).astype(jnp.uint32)
        return x < self.problem.width  # one comparison: negative is large

    def load_key(self, ref: Any, row: Row, column: int, mask: Vector | None) -> list[Vector]:
        """A key; one that is far from all queries where the mask is False."""
        layout = Layout.depth(self.problem, 1)
        places = (column - max(self.taps)) * self.problem.groups
        return load_depth(self.alu, self.problem, layout, ref, row.keys, places, mask, far=1)

    def load_value(
        self, channels: Channels, ref: Any, row: Row, column: int, mask: Vector | None
    ) -> list[Vector]:
        """The lane's channels of a value, 0 where the mask is False."""
        back = column - max(self.taps)
        return channels.load(self.alu, ref, row.values, back, mask, exact=False)

    def masked_prior(self, prior: Vector, i: int, mask: Vector | None) -> Vector:
        """A prior that makes the weight 0 where the key or the query is none."""
        inside = both(mask, self.fits[i])
        if inside is None or self.problem.far or not self.problem.softmax:
            return prior
        return jnp.where(inside, prior, -jnp.inf)


def window_columns(problem: Problem, strip: int) -> dict[int, list[tuple[int, int]]]:
    """Column of keys, counted from the strip's first -> the (pixel, tap) pairs that look at it."""
    taps: dict[int, list[tuple[int, int]]] = {}
    for i in range(strip):
        for dx in range(problem.spec.kernel_size[1]):
            column = i * problem.spec.stride + dx * problem.spec.dilation
            taps.setdefault(column, []).append((i, dx))
    return dict(sorted(taps.items()))


def output_strips(problem: Problem, tile: Tile, units: int) -> tuple[Strips, list[Form]]:
    """How programs cover the output, and the forms of code for that."""
    strips = Strips(*problem.out_size, tile.strip, units, problem.batch, tile.lanes)
    s, pad = problem.spec.stride, problem.spec.padding[1]
    columns = window_columns(problem, tile.strip)
    return strips, strips.forms(tile.strip * s, -pad, columns, problem.width)


def window_rows(problem: Problem, strips: Strips, first: Scalar) -> tuple[Any, Any]:
    """From and to (exclusive) which row the windows of a program's lanes reach into the image."""
    spec = problem.spec
    kh, pad, s, dilation = spec.kernel_size[0], spec.padding[0], spec.stride, spec.dilation
    low, high, _ = strips.row_range(first)
    above = jnp.maximum(pad - high * s, 0) + (dilation - 1)
    start = lax.div(above, jnp.int32(dilation))
    end = lax.div(problem.height - 1 + pad - low * s, jnp.int32(dilation)) + 1
    return start, jnp.minimum(end, kh)
