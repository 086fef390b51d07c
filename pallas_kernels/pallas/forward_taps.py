"""The loops of the forward kernel over the taps of a strip.

Each lane first tries a single pass without subtracting the maximum: the weight of a tap is
2**logit. At M = 8 a tap costs twelve arithmetic instructions. The pass is exact as long as no
weight that matters leaves the range of float32. So the program then checks that every sum is in
[2**-40, 2**60] and every output is finite. If the check fails, the program computes its strips
again with two passes, one for the maximum and one for the weights. Results that pass the check are
as accurate as those of two passes: a weight lost to underflow is below 2**-80 of its sum. (A
product weight * value below 2**-149 is lost too, so outputs carry an absolute error of up to
1e-31.)
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.pallas.lanes.arithmetic import Alu, Number, Ops
from pallas_kernels.pallas.lanes.channels import Channels
from pallas_kernels.pallas.lanes.logits import LogitMath
from pallas_kernels.pallas.lanes.memory import Layout, Operand, store
from pallas_kernels.pallas.lanes.operands import Operands
from pallas_kernels.pallas.lanes.vectors import Ref, Scalar, Vector, Vectors, and_masks, loop
from pallas_kernels.pallas.output_strip import OutputStrip, WindowRow
from pallas_kernels.pallas.problem import LOG2E, Problem
from pallas_kernels.pallas.strips import BorderCase
from pallas_kernels.spec import Normalizer

MIN_SUM = 2.0**-40
MAX_SUM = 2.0**60


class Results(NamedTuple):
    """What the kernel writes, flat; the normalizer is None without softmax."""

    out: Ref
    normalizer: Normalizer | None


class _Sums(NamedTuple):
    """The sums over the taps of each pixel of a strip.

    Attributes:
      total: the sum of weights as a list of one vector; [] without softmax.
      values: the sum of weighted values, for each channel.
    """

    total: list[Vectors]
    values: list[Vectors]


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of the forward kernel, and its work.

    Attributes:
      problem: the problem.
      alu: runs arithmetic.
      operands: the inputs.
      results: where to write.
      strip: the pixels of each lane.
      rows: start and end of the loop over window rows.
      channels: of each lane.
      chunk: which chunk of the group these channels are.
      zero: (N,).
    """

    problem: Problem
    alu: Alu
    operands: Operands
    results: Results
    strip: OutputStrip
    rows: tuple[Scalar, Scalar]
    channels: Channels
    chunk: Vector
    zero: Vector

    def single_pass(self, case: BorderCase) -> jax.Array | None:
        """Computes the strip without a maximum.

        Returns:
          1 if any result is not accurate, else 0. Without softmax all are, and it returns None.
        """
        problem, logits = self.problem, LogitMath(self.problem, fast=True)
        strip = self.strip.of_case(case)
        queries = [logits.stationary(strip.load_query(i)) for i in range(strip.count)]
        # Without softmax there is no sum of weights.
        total: list[Vectors] = [[self.zero] if problem.softmax else []] * strip.count
        start, end = self.rows
        sums = loop(
            end,
            functools.partial(self._add_row, logits, strip, queries),
            _Sums(total, [[self.zero] * problem.chunk] * strip.count),
            start,
        )
        strip = strip.rematerialized()
        if problem.softmax:
            return self._store_checked(logits, strip, queries, sums)
        out = self._out
        addresses = self.channels.addresses(out, strip.last_pixel)
        for i in range(strip.count):
            self.channels.store(
                out, addresses, strip.from_last(i), sums.values[i], strip.store_mask[i]
            )
        return None

    def _add_row(
        self,
        logits: LogitMath,
        strip: OutputStrip,
        queries: list[Vectors],
        number: Scalar,
        sums: _Sums,
    ) -> _Sums:
        """Adds the taps of a window row."""
        total, values = list(sums.total), list(sums.values)
        row = strip.row(number, self.channels)
        priors = self.operands.prior.load(True, number, strip.origin.unit, row.valid)
        for column, users in strip.taps.items():
            mask = strip.column_mask(column)
            if not self.problem.softmax:
                # With softmax, a prior of -inf makes the weights of other rows 0.
                mask = and_masks(mask, row.valid)
            k = strip.load_key(row, column, mask)
            v = strip.load_value(self.channels, row, column, mask)
            pixels = [
                (queries[i], strip.masked_prior(priors[dx], i, mask), total[i], values[i])
                for i, dx in users
            ]
            new = self.alu.inline_each(functools.partial(_add_tap, logits), (k, v), pixels)
            for (i, _), of_pixel in zip(users, new, strict=True):
                total[i], values[i] = of_pixel
        return _Sums(total, values)

    def _store_checked(
        self, logits: LogitMath, strip: OutputStrip, queries: list[Vectors], sums: _Sums
    ) -> jax.Array:
        """Stores the results, accurate or not; returns 1 if any is not, else 0."""
        failed = jnp.zeros_like(self.zero, bool)
        for i in range(strip.count):
            [total], mask = sums.total[i], strip.store_mask[i]
            accurate = (total >= MIN_SUM) & (total <= MAX_SUM)
            if self.problem.dtypes[2] != np.float16:  # 65504 * 2**60 is finite
                accurate &= self.alu.inline(_magnitude, sums.values[i]) < jnp.inf
            for imprecise in logits.imprecise(queries[i]):
                accurate &= ~imprecise
            failed |= ~accurate if mask is None else ~accurate & mask
            self._store(strip, i, self.zero, total, sums.values[i])
        return jnp.max(failed.astype(jnp.int32))

    def exact_pass(self) -> None:
        """Computes the strip again, with a pass for the maximum and one for the weights.

        It takes one pixel at a time, because it runs rarely and must not enlarge the kernel.
        """
        loop(self.strip.count, self._exact_pixel, 0)

    def _exact_pixel(self, i: Scalar, carry: int) -> int:
        logits = LogitMath(self.problem, fast=False)
        strip = self.strip.pixel(i)
        query = logits.stationary(strip.load_query(0))
        start, end = self.rows

        def taps(row: WindowRow, number: Scalar) -> Iterator[tuple[int, Vector, Vector]]:
            """Yields (column, whether it exists, logit or -inf)."""
            priors = self.operands.prior.load(False, number, strip.origin.unit, row.valid)
            for column, [(_, dx)] in strip.taps.items():
                mask = and_masks(row.valid, strip.column_mask(column))
                assert mask is not None
                k = strip.load_key(row, column, mask)
                logit = self.alu.inline(lambda *x: logits.logit(*x)[0], query, k, priors[dx])
                yield column, mask, jnp.where(mask, logit, -jnp.inf)

        def maximum(number: Scalar, shift: Vector) -> Vector:
            for _, _, logit in taps(strip.row(number, self.channels), number):
                shift = jnp.maximum(shift, logit)
            return shift

        def add(number: Scalar, sums: tuple[Vector, Vectors]) -> tuple[Vector, Vectors]:
            total, values = sums
            row = strip.row(number, self.channels)
            for column, mask, logit in taps(row, number):
                v = strip.load_value(self.channels, row, column, mask)
                total, values = self.alu.inline(_add_shifted, logit, shift, v, total, values)
            return total, values

        shift = loop(end, maximum, jnp.full_like(self.zero, -jnp.inf), start)
        zeros = [self.zero] * self.problem.chunk
        total, values = loop(end, add, (self.zero, zeros), start)
        self._store(strip, 0, shift, total, values)
        return carry

    @property
    def _out(self) -> Operand:
        return Operand(self.alu, self.results.out, Layout.value(self.problem))

    def _store(
        self, strip: OutputStrip, i: int, shift: Vector, total: Vector, values: Vectors
    ) -> None:
        """Divides by the sum of weights and stores pixel i."""
        assert self.results.normalizer is not None
        factor, out = self.alu.inline(_divide, total, values)
        addresses, mask = self.channels.addresses(self._out, strip.last_pixel), strip.store_mask[i]
        self.channels.store(self._out, addresses, strip.from_last(i), out, mask)
        if self.problem.chunks > 1:  # the lane of the first chunk stores it for the group
            mask = and_masks(mask, self.chunk == 0)
        store(self.alu, self.results.normalizer.shift, strip.place(i), shift, mask)
        store(self.alu, self.results.normalizer.factor, strip.place(i), factor, mask)


def _add_tap(
    logits: LogitMath,
    ops: Ops[Number],
    k: list[Number],
    v: list[Number],
    q: list[Number],
    prior: Number,
    total: list[Number],
    values: list[Number],
) -> tuple[list[Number], list[Number]]:
    """Adds a tap to the sums of a pixel, with a weight of 2**logit or, without softmax, logit."""
    weight, _ = logits.logit(ops, q, k, prior)
    if logits.problem.softmax:
        weight = ops.exp2(weight)
        total = [total[0] + weight]
    return total, ops.add_weighted(weight, v, values)


def _add_shifted(
    ops: Ops[Number],
    logit: Number,
    shift: Number,
    v: list[Number],
    total: Number,
    values: list[Number],
) -> tuple[Number, list[Number]]:
    """Adds a tap to the sums of a pixel, with a weight of exp(logit - shift)."""
    weight = ops.exp2((logit - shift) * LOG2E)
    return total + weight, ops.add_weighted(weight, v, values)


def _divide(ops: Ops[Number], total: Number, values: list[Number]) -> tuple[Number, list[Number]]:
    factor = ops.reciprocal(total)
    return factor, [a * factor for a in values]


def _magnitude(ops: Ops[Number], values: list[Number]) -> Number:
    """The sum of magnitudes; it is finite if and only if all values are."""
    total = ops.absolute(values[0])
    for a in values[1:]:
        total = total + ops.absolute(a)
    return total
