"""A lane's strip of keys, and the output pixels whose windows contain them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.pallas.lanes.channels import Channels
from pallas_kernels.pallas.lanes.memory import (
    Address,
    Operand,
    base_address,
    deinterleave,
    load,
    span,
)
from pallas_kernels.pallas.lanes.operands import Components, Operands
from pallas_kernels.pallas.lanes.ptx import opaque
from pallas_kernels.pallas.lanes.vectors import Mask, Ref, Scalar, Vector, Vectors, and_masks
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.strips import BorderCase, Place, Strips, Taps
from pallas_kernels.pallas.tiling import Tile


class OutputRow(NamedTuple):
    """A row of output pixels whose windows contain a strip of keys.

    All addresses are those of the last output pixel.

    Attributes:
      queries: base of the query.
      outputs: addresses of the output's gradient.
      pairs: base of (factor, -delta); None without softmax.
      shifts: base of the shift; None without softmax.
      window_row: in which row of the windows the keys are.
      valid: whether such an output row exists. Where not, the addresses are those of another row.
    """

    queries: Vector
    outputs: list[Address]
    pairs: Vector | None
    shifts: Vector | None
    window_row: Scalar
    valid: Vector


class KeyStrip:
    """Horizontally adjacent keys of each lane, a multiple of the stride of them.

    Keys are numbered from 0 in the strip, and addressed from the last key backwards.

    Attributes:
      in_image: for each key, the lanes in which it is in the image.
      store_mask: for each key, the lanes that store its results: in the image and active.
      taps: columns of outputs; see `output_columns`.
    """

    def __init__(
        self,
        problem: Problem,
        operands: Operands,
        place: Place,
        count: int,
        ragged: bool,
        case: BorderCase | None,
    ):
        """Computes the addresses.

        Args:
          problem: the problem.
          operands: the inputs in memory.
          place: of each lane; its unit is a group.
          count: number of keys.
          ragged: whether keys may be beyond the right border.
          case: of the strip. None: any column of outputs may be outside the image.
        """
        self.problem, self.operands, self.count = problem, operands, count
        self.masked = case is None or case.columns is None
        columns = output_columns(problem, count)
        self.taps = case.existing(columns) if case else columns
        x0 = case.first_column(place.x0, count) if case else place.x0
        self.origin = place._replace(x0=x0)
        self._last_column = max(self.taps, default=0)
        self._keys = self.key_base()
        self.in_image: list[Mask] = [
            x0 + i < problem.width if ragged and self.masked else None for i in range(count)
        ]
        self.store_mask = [and_masks(place.active, x) for x in self.in_image]

    def last_pixel(self, rematerialize: bool = False) -> Vector:
        """Number of the last key's pixel in the whole batch.

        Args:
          rematerialize: whether to compute it again; see `OutputStrip.rematerialized`.
        """
        image, y, x0, *_ = self.origin
        image = opaque(image) if rematerialize else image
        return (image * self.problem.height + y) * self.problem.width + x0 + (self.count - 1)

    def key_base(self, rematerialize: bool = False) -> Vector:
        """Base of the last key; see `last_pixel`."""
        last = self.last_pixel(rematerialize)
        return self.operands.key.base(last * self.problem.groups + self.origin.unit)

    def from_last(self, i: int) -> int:
        """Pixels from the last key to key i; not positive."""
        return i + 1 - self.count

    def load_key(self, i: int) -> Vectors:
        """Key i; 0 beyond the image."""
        places = self.from_last(i) * self.problem.groups
        return self.operands.key.load(self._keys, places, self.in_image[i])

    def load_values(self, channels: Channels) -> list[Vectors]:
        """The lane's channels of the value at each key; 0 beyond the image."""
        value = self.operands.value
        addresses = channels.addresses(value, self.last_pixel())
        return [
            channels.load(value, addresses, self.from_last(i), mask)
            for i, mask in enumerate(self.in_image)
        ]

    def store_key(self, array: Components, base: Vector, i: int, parts: Vectors) -> None:
        """Writes the gradient of key i; `base` is that of `key_base`."""
        array.store(base, self.from_last(i) * self.problem.groups, parts, self.store_mask[i])

    def store_values(self, array: Operand, channels: Channels, gradients: list[Vectors]) -> None:
        """Writes the gradients of the values, after a loop."""
        addresses = channels.addresses(array, self.last_pixel(rematerialize=True))
        for i, parts in enumerate(gradients):
            channels.store(array, addresses, self.from_last(i), parts, self.store_mask[i])

    def row(self, number: Scalar, channels: Channels) -> OutputRow:
        """Row `number` of the loop over `output_rows`."""
        problem, groups, group = self.problem, self.problem.groups, self.origin.unit
        last, window_row, valid = self._output_row(number)
        queries = self.operands.query.base(last * groups + group)
        outputs = channels.addresses(self.operands.value, last)
        pairs = shifts = None
        if problem.softmax:
            pairs = base_address(2 * (last * groups + group), 2)
            shifts = base_address(last * groups + group)
        return OutputRow(queries, outputs, pairs, shifts, window_row, valid)

    def _output_row(self, number: Scalar) -> tuple[Vector, Scalar, Vector]:
        """(last output pixel, window row, whether there is such an output row)."""
        problem, spec, (image, y, x0, *_) = self.problem, self.problem.spec, self.origin
        kh, pad_y, s = spec.kernel_size[0], spec.padding[0], spec.stride
        ho, wo = problem.out_size
        row: Scalar
        if s == 1:
            offset = number * spec.dilation
            yo = y + pad_y - offset
            row, valid = number, (yo >= 0) & (yo < ho)
        else:
            yo = (y + pad_y) // s - number
            offset = y + pad_y - yo * s
            row, valid = offset // spec.dilation, (yo >= 0) & (yo < ho)
            if spec.dilation > 1:
                valid &= offset % spec.dilation == 0
            if not problem.softmax:
                valid &= row < kh
            row = jnp.minimum(row, kh)  # row Kh of the prior makes weights 0
        last = (image * ho + jnp.clip(yo, 0, ho - 1)) * wo + x0 // s + self._last_column
        return last, row, valid

    def column_mask(self, column: int) -> Mask:
        """The lanes in which a column of outputs is in the image."""
        if not self.masked:
            return None
        x = (self.origin.x0 // self.problem.spec.stride + column).astype(jnp.uint32)
        return x < self.problem.out_size[1]  # a single comparison, because negative x become large

    def load_query(self, row: OutputRow, column: int, mask: Mask) -> Vectors:
        """The query of an output; where the mask is False, one that is far from all keys."""
        return self.operands.query.load(row.queries, self._places(column), mask, distant=1)

    def load_gradient(
        self, array: Operand, channels: Channels, row: OutputRow, column: int, mask: Mask
    ) -> Vectors:
        """The lane's channels of an output's gradient; 0 where the mask is False."""
        # Channels that do not exist are multiplied by values of 0.
        pixels = column - self._last_column
        return channels.load(array, row.outputs, pixels, mask, exact=False)

    def load_pair(
        self, pairs: Ref, row: OutputRow, column: int, mask: Mask
    ) -> tuple[Vector, Vector]:
        """(factor, -delta) of an output; 0 where the mask is False."""
        assert row.pairs is not None
        factor, minus_delta = deinterleave(
            load(pairs, span(row.pairs, 2 * self._places(column), 2), mask, 0.0)
        )
        return factor, minus_delta

    def load_shift(self, shifts: Ref, row: OutputRow, column: int, mask: Mask) -> Vector:
        """The shift of an output; 0 where the mask is False."""
        assert row.shifts is not None
        return load(shifts, row.shifts + self._places(column), mask, 0.0)

    def _places(self, column: int) -> int:
        """Places, pixel * G + group, from the last column of outputs to another one."""
        return (column - self._last_column) * self.problem.groups


def output_columns(problem: Problem, strip: int) -> Taps:
    """The columns of outputs whose windows contain keys of a strip, counted from x0 // stride."""
    spec, pad = problem.spec, problem.spec.padding[1]
    taps: Taps = {}
    for i in range(strip):
        for dx in range(spec.kernel_size[1]):
            column, rest = divmod(i + pad - dx * spec.dilation, spec.stride)
            if rest == 0:
                taps.setdefault(column, []).append((i, dx))
    return dict(sorted(taps.items()))


def key_strips(problem: Problem, tile: Tile) -> tuple[Strips, list[BorderCase]]:
    """How programs cover the keys, and the border cases of their strips."""
    s, height, width = problem.spec.stride, problem.height, problem.width
    phases = s if height % s == 0 else 1
    groups, batch, lanes = problem.groups, problem.batch, tile.lanes
    strips = Strips(height, width, tile.strip, groups, batch, lanes, phases)
    columns = output_columns(problem, tile.strip)
    return strips, strips.border_cases(tile.strip // s, 0, columns, problem.out_size[1])


def output_rows(problem: Problem, strips: Strips, first: Scalar) -> tuple[jax.Array, jax.Array]:
    """The iterations of the loop over output rows that a program needs: start, and exclusive end.

    With stride 1, iteration i visits the output row in whose windows the keys are in row i. With a
    longer stride, iteration 0 visits the lowest output row that may see a key, and i the i-th above
    it.
    """
    spec, rows, s = problem.spec, problem.out_size[0], jnp.int32(problem.spec.stride)
    low, high, same_phase = strips.row_range(first)
    low, high = low + spec.padding[0], high + spec.padding[0]
    kh, dilation = spec.kernel_size[0], jnp.int32(spec.dilation)
    if spec.stride == 1:
        below = jnp.maximum(low - (rows - 1), 0) + (spec.dilation - 1)
        return lax.div(below, dilation), jnp.minimum(lax.div(high, dilation) + 1, kh)
    # Lanes of one phase are adjacent, so most programs contain a single phase.
    offset = jnp.where(same_phase & (strips.phases > 1), lax.rem(low, s), 0)
    end = jnp.minimum(lax.div(high, s), lax.div((kh - 1) * dilation - offset, s)) + 1
    return jnp.maximum(lax.div(low, s) - (rows - 1), 0), end
