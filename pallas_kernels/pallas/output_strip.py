"""A lane's strip of output pixels, and the keys and values of their windows.

The forward kernel and the query kernel both gather along such strips.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from pallas_kernels.pallas.lanes.channels import Channels
from pallas_kernels.pallas.lanes.memory import Address, base_address, span
from pallas_kernels.pallas.lanes.operands import Components, Operands
from pallas_kernels.pallas.lanes.ptx import opaque
from pallas_kernels.pallas.lanes.vectors import Mask, Scalar, Vector, Vectors, and_masks
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.strips import BorderCase, Place, Strips, Taps
from pallas_kernels.pallas.tiling import Tile


class WindowRow(NamedTuple):
    """A row of the windows of a strip.

    Attributes:
      keys: base of the key in the last column.
      values: addresses of the value in the last column.
      valid: whether the row is in the image. Where not, the addresses are those of another row.
    """

    keys: Vector
    values: list[Address]
    valid: Vector


class OutputStrip:
    """Horizontally adjacent output pixels of each lane.

    Pixels are numbered from 0 in the strip, and addressed from the last pixel backwards.

    Attributes:
      in_image: for each pixel, the lanes in which it is in the image.
      store_mask: for each pixel, the lanes that store its results: in the image and active.
      last_pixel: number of the last pixel in the whole batch.
      taps: columns of keys; see `window_columns`.
    """

    def __init__(
        self,
        problem: Problem,
        operands: Operands,
        place: Place,
        count: int,
        ragged: bool,
        case: BorderCase | None = None,
    ):
        """Computes the addresses.

        Args:
          problem: the problem.
          operands: the inputs in memory.
          place: of each lane; its unit is a group.
          count: number of pixels.
          ragged: whether pixels may be beyond the right border.
          case: of the strip. None: any column of keys may be outside the image.
        """
        self.problem, self.operands, self.count, self.ragged = problem, operands, count, ragged
        self.case, self.origin = case, place
        ho, wo = problem.out_size
        self.in_image: list[Mask] = [place.x0 + i < wo if ragged else None for i in range(count)]
        self.store_mask = [and_masks(place.active, x) for x in self.in_image]
        self.last_pixel = (place.image * ho + place.row) * wo + place.x0 + (count - 1)
        last_place = self.last_pixel * problem.groups + place.unit
        self._places = base_address(last_place)
        self._pairs = base_address(2 * last_place, 2)
        self._queries = operands.query.base(last_place)
        self.masked = case is None or case.columns is None
        columns = window_columns(problem, count)
        self.taps = case.existing(columns) if case else columns

    def rematerialized(self) -> "OutputStrip":
        """The same strip with addresses that are computed again, for stores after a loop.

        The addresses from before the loop would occupy registers throughout it. LLVM would also
        share their sums with those of the loads, for two registers and four instructions each.
        """
        place = self.origin._replace(image=opaque(self.origin.image))
        return OutputStrip(self.problem, self.operands, place, self.count, self.ragged, self.case)

    def pixel(self, i: Scalar) -> "OutputStrip":
        """A strip of one of the pixels."""
        place = self.origin._replace(x0=self.origin.x0 + i)
        return OutputStrip(self.problem, self.operands, place, 1, self.ragged)

    def of_case(self, case: BorderCase) -> "OutputStrip":
        """The same strip, for code of one border case."""
        x0 = case.first_column(self.origin.x0, self.count)
        ragged = self.ragged and case.columns is None
        place = self.origin._replace(x0=x0)
        return OutputStrip(self.problem, self.operands, place, self.count, ragged, case)

    def from_last(self, i: int) -> int:
        """Pixels from the last one to pixel i; not positive."""
        return i + 1 - self.count

    def place(self, i: int) -> Vector:
        """Index of pixel i in an array of one number per pixel and group."""
        return self._places + self.from_last(i) * self.problem.groups

    def pair(self, i: int) -> Vector:
        """Indices (N, 2) of pixel i in an array of two numbers per pixel and group."""
        return span(self._pairs, 2 * self.from_last(i) * self.problem.groups, 2)

    def load_query(self, i: int) -> Vectors:
        """The query of pixel i; beyond the image one that is far from all keys."""
        places = self.from_last(i) * self.problem.groups
        # It is distant in the opposite direction of the keys beyond the image.
        return self.operands.query.load(self._queries, places, self.in_image[i], distant=-1)

    def store_query(self, array: Components, i: int, parts: Vectors) -> None:
        """Writes the gradient of the query of pixel i."""
        places = self.from_last(i) * self.problem.groups
        array.store(self._queries, places, parts, self.store_mask[i])

    def row(self, number: Scalar, channels: Channels) -> WindowRow:
        """Row `number` of the windows."""
        spec, problem, place = self.problem.spec, self.problem, self.origin
        yi = place.row * spec.stride + number * spec.dilation - spec.padding[0]
        clamped = jnp.clip(yi, 0, problem.height - 1)
        last = (place.image * problem.height + clamped) * problem.width
        last += place.x0 * spec.stride + (max(self.taps) - spec.padding[1])
        keys = self.operands.key.base(last * problem.groups + place.unit)
        values = channels.addresses(self.operands.value, last)
        return WindowRow(keys, values, (yi >= 0) & (yi < problem.height))

    def column_mask(self, column: int) -> Mask:
        """The lanes in which a column of keys is in the image."""
        if not self.masked:
            return None
        spec = self.problem.spec
        x = (self.origin.x0 * spec.stride + (column - spec.padding[1])).astype(jnp.uint32)
        return x < self.problem.width  # a single comparison, because negative x become large

    def load_key(self, row: WindowRow, column: int, mask: Mask) -> Vectors:
        """A key; where the mask is False, one that is far from all queries."""
        places = (column - max(self.taps)) * self.problem.groups
        return self.operands.key.load(row.keys, places, mask, distant=1)

    def load_value(self, channels: Channels, row: WindowRow, column: int, mask: Mask) -> Vectors:
        """The lane's channels of a value; 0 where the mask is False."""
        pixels = column - max(self.taps)
        return channels.load(self.operands.value, row.values, pixels, mask, exact=False)

    def masked_prior(self, prior: Vector, i: int, mask: Mask) -> Vector:
        """A prior that makes the weight 0 where the key or the query does not exist."""
        return self.operands.prior.masked(prior, and_masks(mask, self.in_image[i]))


def window_columns(problem: Problem, strip: int) -> Taps:
    """The columns of keys that a strip of output pixels uses, counted from its first window's."""
    taps: Taps = {}
    for i in range(strip):
        for dx in range(problem.spec.kernel_size[1]):
            column = i * problem.spec.stride + dx * problem.spec.dilation
            taps.setdefault(column, []).append((i, dx))
    return dict(sorted(taps.items()))


def output_strips(problem: Problem, tile: Tile, units: int) -> tuple[Strips, list[BorderCase]]:
    """How programs cover the output, and the border cases of its strips."""
    strips = Strips(*problem.out_size, tile.strip, units, problem.batch, tile.lanes)
    s, pad = problem.spec.stride, problem.spec.padding[1]
    columns = window_columns(problem, tile.strip)
    return strips, strips.border_cases(tile.strip * s, -pad, columns, problem.width)


def window_rows(problem: Problem, strips: Strips, first: Scalar) -> tuple[Vector, Vector]:
    """The window rows of a program's lanes that reach into the image: start, and exclusive end."""
    spec = problem.spec
    kh, pad, s, dilation = spec.kernel_size[0], spec.padding[0], spec.stride, spec.dilation
    low, high, _ = strips.row_range(first)
    above = jnp.maximum(pad - high * s, 0) + (dilation - 1)
    start = lax.div(above, jnp.int32(dilation))
    end = lax.div(problem.height - 1 + pad - low * s, jnp.int32(dilation)) + 1
    return start, jnp.minimum(end, kh)
