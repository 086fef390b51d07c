"""The loops of the key kernel over the outputs whose windows contain a strip of keys."""

import dataclasses
import functools
from typing import Generic, NamedTuple

import jax.numpy as jnp

from pallas_kernels.pallas.key_strip import KeyStrip, OutputRow
from pallas_kernels.pallas.lanes.arithmetic import Alu, Number, Ops
from pallas_kernels.pallas.lanes.channels import Channels
from pallas_kernels.pallas.lanes.logits import LogitMath
from pallas_kernels.pallas.lanes.memory import Operand
from pallas_kernels.pallas.lanes.operands import Components, Operands
from pallas_kernels.pallas.lanes.vectors import Mask, Ref, Scalar, Vector, Vectors, and_masks, loop
from pallas_kernels.pallas.problem import LOG2E, Problem
from pallas_kernels.pallas.query_taps import PixelStats
from pallas_kernels.pallas.strips import BorderCase, Place, Strips


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of the key kernel, and its work.

    Attributes:
      problem: the problem.
      alu: runs arithmetic.
      operands: the inputs.
      d_out: gradient of the output.
      shift: of the normalizer; None without softmax.
      stats: what the query kernel stored for this one; None without softmax.
      d_key: to write.
      d_value: to write.
      strips: how programs cover the keys.
      place: of each lane.
      rows: start and end of the loop over output rows.
      zero: (N,).
    """

    problem: Problem
    alu: Alu
    operands: Operands
    d_out: Operand
    shift: Ref | None
    stats: PixelStats | None
    d_key: Components
    d_value: Operand
    strips: Strips
    place: Place
    rows: tuple[Scalar, Scalar]
    zero: Vector

    def gather_case(self, case: BorderCase) -> None:
        """Computes the whole strip, by the fast path if there is a softmax."""
        strip = self._strip(self.place, self.strips.strip, case)
        _Gather.of(self, strip, fast=self.problem.softmax).run()

    def gather_exact(self) -> None:
        """Computes few keys at a time, because it runs rarely and must not enlarge the kernel."""
        s = self.problem.spec.stride

        def some_keys(i: Scalar, carry: int) -> int:
            place = self.place._replace(x0=self.place.x0 + i * s)
            _Gather.of(self, self._strip(place, s, None), fast=False).run()
            return carry

        loop(self.strips.strip // s, some_keys, 0)

    def _strip(self, place: Place, count: int, case: BorderCase | None) -> KeyStrip:
        return KeyStrip(self.problem, self.operands, place, count, self.strips.ragged, case)


class _Sums(NamedTuple):
    """The gradients of each key of a strip: components of d_key, a chunk's channels of d_value."""

    d_keys: list[Vectors]
    d_values: list[Vectors]


class _Output(NamedTuple, Generic[Number]):
    """One output pixel, as `_add_tap` takes it.

    Attributes:
      query: D components.
      g: a chunk of channels of the output's gradient.
      start: what the sum g . value starts from, -delta.
      normalizer: (factor), or (shift, factor) in the exact path, or () without softmax.
    """

    query: list[Number]
    g: list[Number]
    start: Number
    normalizer: list[Number]


class _Key(NamedTuple, Generic[Number]):
    """One key and tap, as `_add_tap` takes it.

    Attributes:
      key: D components, prepared.
      prior: of the tap.
      value: a chunk of channels.
      d_key: sum so far, D components.
      d_value: sum so far, a chunk of channels.
    """

    key: list[Number]
    prior: Number
    value: list[Number]
    d_key: list[Number]
    d_value: list[Number]


@dataclasses.dataclass(frozen=True)
class _Gather:
    """The sums over the outputs whose windows contain a strip of keys.

    Attributes:
      program: what it is part of.
      strip: the keys.
      logits: fast or exact.
      keys: prepared, for each key of the strip.
    """

    program: Program
    strip: KeyStrip
    logits: LogitMath
    keys: list[Vectors]

    @classmethod
    def of(cls, program: Program, strip: KeyStrip, fast: bool) -> "_Gather":
        """Loads the keys."""
        logits = LogitMath(program.problem, fast, of_key=True)
        keys = [logits.stationary(strip.load_key(i)) for i in range(strip.count)]
        return cls(program, strip, logits, keys)

    def run(self) -> None:
        """Computes and stores both gradients."""
        program, strip = self.program, self.strip
        zeros = [[program.zero] * program.problem.depth] * strip.count
        d_keys = loop(program.problem.chunks, self._add_chunk, zeros)
        base = strip.key_base(rematerialize=True)
        for i in range(strip.count):
            strip.store_key(program.d_key, base, i, self.logits.finish(d_keys[i]))

    def _add_chunk(self, chunk: Scalar, d_keys: list[Vectors]) -> list[Vectors]:
        """Adds the terms of a chunk of channels to d_keys, and stores its d_values."""
        program, strip = self.program, self.strip
        channels = Channels.of(program.problem, strip.origin.unit, chunk)
        values = strip.load_values(channels)
        zeros = [[program.zero] * program.problem.chunk] * strip.count
        start, end = program.rows
        add_row = functools.partial(self._add_row, chunk, channels, values)
        sums = loop(end, add_row, _Sums(d_keys, zeros), start)
        strip.store_values(program.d_value, channels, sums.d_values)
        return sums.d_keys

    def _add_row(
        self,
        chunk: Scalar,
        channels: Channels,
        values: list[Vectors],
        number: Scalar,
        sums: _Sums,
    ) -> _Sums:
        """Adds the terms of a row of outputs."""
        program, strip, prior = self.program, self.strip, self.program.operands.prior
        d_keys, d_values = list(sums.d_keys), list(sums.d_values)
        row = strip.row(number, channels)
        priors = prior.load(self.logits.fast, row.window_row, strip.origin.unit, row.valid)
        for column, users in strip.taps.items():
            mask = strip.column_mask(column)
            if not program.problem.softmax:
                mask = and_masks(mask, row.valid)
            output = self._load_output(chunk, channels, row, column, mask)
            keys = [
                _Key(
                    self.keys[i],
                    prior.masked(priors[dx], mask),
                    values[i],
                    d_keys[i],
                    d_values[i],
                )
                for i, dx in users
            ]
            add = functools.partial(_add_tap, self.logits)
            new = program.alu.inline_each(add, (output,), [(key,) for key in keys])
            for (i, _), (d_key, d_value) in zip(users, new, strict=True):
                d_keys[i], d_values[i] = d_key, d_value
        return _Sums(d_keys, d_values)

    def _load_output(
        self, chunk: Scalar, channels: Channels, row: OutputRow, column: int, mask: Mask
    ) -> _Output[Vector]:
        program, strip = self.program, self.strip
        query = strip.load_query(row, column, mask)
        g = strip.load_gradient(program.d_out, channels, row, column, mask)
        if program.stats is None:
            return _Output(query, g, program.zero, [])
        assert program.shift is not None
        factor, start = strip.load_pair(program.stats.pairs, row, column, mask)
        if program.problem.chunks > 1:  # the first chunk adds delta, the others must not again
            start = jnp.where(chunk == 0, start, 0.0)
        if self.logits.fast:
            return _Output(query, g, start, [factor])
        shift = strip.load_shift(program.shift, row, column, mask)
        return _Output(query, g, start, [shift, factor])


def _add_tap(
    logits: LogitMath, ops: Ops[Number], output: _Output[Number], key: _Key[Number]
) -> tuple[list[Number], list[Number]]:
    """Adds a tap to (d_key, d_value) of a key."""
    weight, slopes = logits.logit(ops, key.key, output.query, key.prior)
    d_logit = ops.dot(output.g, key.value, output.start)
    if output.normalizer:
        *shift, factor = output.normalizer
        if shift:
            weight = (weight - shift[0]) * LOG2E
        weight = ops.exp2(weight) * factor
        d_logit = weight * d_logit
    d_value = ops.add_weighted(weight, output.g, key.d_value)
    return logits.accumulate(ops, key.d_key, d_logit, slopes), d_value
