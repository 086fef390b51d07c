"""The loops of the query kernel over the taps of a strip."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Generic, NamedTuple

import jax

from pallas_kernels.pallas.lanes.arithmetic import Alu, Number, Ops
from pallas_kernels.pallas.lanes.channels import Channels
from pallas_kernels.pallas.lanes.logits import LogitMath
from pallas_kernels.pallas.lanes.memory import Operand
from pallas_kernels.pallas.lanes.operands import Components, Operands
from pallas_kernels.pallas.lanes.prior_columns import PriorColumns
from pallas_kernels.pallas.lanes.vectors import Ref, Scalar, Vector, Vectors, and_masks, loop
from pallas_kernels.pallas.output_strip import OutputStrip
from pallas_kernels.pallas.problem import LOG2E, Problem
from pallas_kernels.pallas.strips import BorderCase, Strips
from pallas_kernels.spec import Normalizer

# The severity of a lane: what its pixels need in the backward pass.
PLAIN = 0  # All shifts are 0 and all factors are moderate: the fast paths of both kernels.
WIDE_FACTOR = 1  # A factor is not moderate: the exact path of the query kernel.
SHIFTED = (
    2  # A shift is not 0, or a fast logit would be imprecise: the exact paths of both kernels.
)


class PixelStats(NamedTuple):
    """What the query kernel stores for the key kernel.

    Attributes:
      pairs: (factor, -delta) per pixel and group, flat float32.
      severity: the worst one among the output rows whose windows contain a row of keys. There is
        one int32 per image and row of keys, flat.
    """

    pairs: jax.Array
    severity: jax.Array


class Results(NamedTuple):
    """What the kernel writes, flat.

    Attributes:
      d_query: the gradient of the queries.
      pairs: (factor, -delta) per pixel and group, float32; None without softmax.
      severity: per strip and group, int32; None without softmax.
      d_prior: see `PriorColumns`; None without a prior.
    """

    d_query: Ref
    pairs: Ref | None
    severity: Ref | None
    d_prior: Ref | None


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of the query kernel: what all its strips share.

    Attributes:
      problem: the problem.
      alu: runs arithmetic.
      operands: the inputs.
      d_out: gradient of the output.
      out: the output; None without softmax.
      normalizer: of the forward pass; None without softmax.
      results: what to write.
      d_query: of these, bound.
      priors: sums of d_prior.
      strips: how programs cover the output.
      cases: border cases of the strips.
      column: number of the column of strips.
      zero: (N,).
    """

    problem: Problem
    alu: Alu
    operands: Operands
    d_out: Operand
    out: Operand | None
    normalizer: Normalizer | None
    results: Results
    d_query: Components
    priors: PriorColumns
    strips: Strips
    cases: Sequence[BorderCase]
    column: jax.Array
    zero: Vector

    def load(self, array: Operand, strip: OutputStrip, chunk: Scalar) -> list[Vectors]:
        """A chunk of the channels of every pixel of a strip."""
        channels = Channels.of(self.problem, strip.origin.unit, chunk)
        addresses = channels.addresses(array, strip.last_pixel)
        return [
            channels.load(array, addresses, strip.from_last(i), strip.store_mask[i])
            for i in range(strip.count)
        ]


class Gradient(NamedTuple):
    """A chunk of the gradient of the output, for every pixel of a strip.

    Attributes:
      channels: of the gradient, times the factor in the fast path.
      start: what the sum g . value starts from: -delta, times the factor in the fast path.
    """

    channels: list[Vectors]
    start: Vectors


class _Pixel(NamedTuple, Generic[Number]):
    """One pixel and tap, as `_add_tap` takes it.

    Attributes:
      query: D components, prepared.
      prior: of the tap.
      g: a chunk of channels of the output's gradient.
      start: what the sum g . value starts from.
      normalizer: (shift, factor) in the exact path, else ().
      d_query: sum so far, D components.
      d_prior: sum so far, of the tap's column in the window.
    """

    query: list[Number]
    prior: Number
    g: list[Number]
    start: Number
    normalizer: list[Number]
    d_query: list[Number]
    d_prior: Number


@dataclasses.dataclass(frozen=True)
class Taps:
    """The loop over the taps of a strip.

    Attributes:
      program: what all strips share.
      strip: the pixels.
      rows: start and end of the loop over window rows.
      logits: fast or exact.
      queries: prepared, for each pixel.
      normalizers: (shift, factor) of each pixel in the exact path, else ().
    """

    program: Program
    strip: OutputStrip
    rows: tuple[Scalar, Scalar]
    logits: LogitMath
    queries: list[Vectors]
    normalizers: list[Vectors]

    def add_chunk(
        self, channels: Channels, gradient: Gradient, sums: list[Vectors]
    ) -> list[Vectors]:
        """Adds the taps of all window rows, of a chunk of channels, to the sums of d_query."""
        start, end = self.rows
        return loop(end, functools.partial(self._add_row, channels, gradient), sums, start)

    def _add_row(
        self, channels: Channels, gradient: Gradient, number: Scalar, sums: list[Vectors]
    ) -> list[Vectors]:
        program, strip = self.program, self.strip
        sums = [list(x) for x in sums]
        row = strip.row(number, channels)
        prior = program.operands.prior
        priors = prior.load(self.logits.fast, number, strip.origin.unit, row.valid)
        d_priors = [program.zero] * program.problem.spec.kernel_size[1]
        for column, users in strip.taps.items():
            mask = strip.column_mask(column)
            if not program.problem.softmax:
                # With softmax, a prior of -inf makes the weights of other rows 0.
                mask = and_masks(mask, row.valid)
            k = strip.load_key(row, column, mask)
            v = strip.load_value(channels, row, column, mask)
            pixels = [
                _Pixel(
                    self.queries[i],
                    strip.masked_prior(priors[dx], i, mask),
                    gradient.channels[i],
                    gradient.start[i],
                    self.normalizers[i],
                    sums[i],
                    d_priors[dx],
                )
                for i, dx in users
            ]
            add = functools.partial(_add_tap, self.logits)
            new = program.alu.inline_each(add, (k, v), [(pixel,) for pixel in pixels])
            for (i, dx), (d_query, d_prior) in zip(users, new, strict=True):
                sums[i], d_priors[dx] = d_query, d_prior
        program.priors.add(number, d_priors, strip.origin.active)
        return sums


def _add_tap(
    logits: LogitMath,
    ops: Ops[Number],
    k: list[Number],
    v: list[Number],
    pixel: _Pixel[Number],
) -> tuple[list[Number], Number]:
    """Adds a tap to (d_query, d_prior) of a pixel."""
    logit, slopes = logits.logit(ops, pixel.query, k, pixel.prior)
    d_logit = ops.dot(pixel.g, v, pixel.start)
    if logits.problem.softmax and logits.fast:
        d_logit = ops.exp2(logit) * d_logit
    elif logits.problem.softmax:
        shift, factor = pixel.normalizer
        d_logit = ops.exp2((logit - shift) * LOG2E) * factor * d_logit
    return logits.accumulate(ops, pixel.d_query, d_logit, slopes), pixel.d_prior + d_logit
