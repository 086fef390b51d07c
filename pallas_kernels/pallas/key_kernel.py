"""The kernel for d_key and d_value; `backward_pass` has the equations.

A lane owns a group and a strip of keys. It keeps the keys, their values and the sums of both
gradients in registers, loops over the rows of output pixels whose windows contain the keys, and
visits the columns of outputs of a row one by one. Each query and output gradient that it loads
serves all keys of the strip that lie in the output's window.

If all shifts of these outputs are 0, weights are 2**logit * factor. Otherwise the program takes the
exact path, as few keys at a time as the stride allows.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.pallas.arithmetic import Alu, Ops, dot
from pallas_kernels.pallas.channels import Channels
from pallas_kernels.pallas.key_strip import KeyStrip, OutputRow, key_strips, output_rows
from pallas_kernels.pallas.lanes import Mask, Ref, Scalar, Vector, and_masks, loop
from pallas_kernels.pallas.logits import LogitMath
from pallas_kernels.pallas.memory import Layout, Operand, load
from pallas_kernels.pallas.operands import Components, Operands
from pallas_kernels.pallas.problem import LOG2E, Problem
from pallas_kernels.pallas.query_program import SHIFTED, PixelStats
from pallas_kernels.pallas.strips import BorderCase, Place, Strips, by_border_case
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Inputs


class Results(NamedTuple):
    """What the kernel writes, flat."""

    d_key: Ref
    d_value: Ref


def key_gradients(
    problem: Problem,
    tile: Tile,
    inputs: Inputs,
    d_out: jax.Array,
    shift: jax.Array | None,
    stats: PixelStats | None,
    *,
    interpret: bool,
) -> Results:
    """Runs the kernel.

    Args:
      problem: the problem.
      tile: how to cut it.
      inputs: flat arrays; see `operands.in_memory`.
      d_out: flat, the gradient of the output.
      shift: of the normalizer, flat; None without softmax.
      stats: what the query kernel left; None without softmax.
      interpret: whether to run in JAX's interpreter.
    """
    strips, cases = key_strips(problem, tile)
    places = problem.batch * problem.height * problem.width
    d_key = Layout.key(problem).result(d_out, places * problem.groups * problem.depth)
    d_value = Layout.value(problem).result(d_out, places * problem.channels)
    [results] = pl.pallas_call(
        functools.partial(_kernel, problem, strips, cases, Alu(ptx=not interpret)),
        grid=strips.grid,
        out_shape=[Results(d_key, d_value)],
        compiler_params=plt.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name="local_relation_backward_key",
    )(inputs, d_out, shift, stats)
    return results


def _kernel(
    problem: Problem,
    strips: Strips,
    cases: Sequence[BorderCase],
    alu: Alu,
    inputs: Inputs,
    d_out: jax.Array,
    shift: jax.Array | None,
    stats: PixelStats | None,
    results: Results,
) -> None:
    first, column = pl.program_id(0) * strips.lanes_per_program, pl.program_id(1)
    place = strips.place(first, column, pl.program_id(2))
    zero = jnp.zeros((strips.lanes_per_program,), jnp.float32)
    layout = Layout.value(problem)
    program = _Program(
        problem,
        alu,
        Operands.of(problem, alu, inputs),
        Operand(alu, d_out, layout),
        shift,
        stats,
        Components.of_keys(problem, alu, results.d_key),
        Operand(alu, results.d_value, layout),
        strips,
        place,
        output_rows(problem, strips, first),
        zero,
    )

    def gather_all() -> None:
        by_border_case(cases, column, program.gather_case)

    if stats is None:
        gather_all()
        return
    severity = load(stats.severity, place.image * problem.height + place.row)
    lax.cond(jnp.max(severity) != SHIFTED, gather_all, program.gather_exact)


@dataclasses.dataclass(frozen=True)
class _Program:
    """The lanes of a program and their work.

    Attributes:
      problem: the problem.
      alu: runs arithmetic.
      operands: the inputs.
      d_out: gradient of the output.
      shift: of the normalizer; None without softmax.
      stats: what the query kernel left; None without softmax.
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
        ragged = self.problem.width % self.strips.strip > 0
        return KeyStrip(self.problem, self.operands, place, count, ragged, case)


class _Sums(NamedTuple):
    """The gradients of each key of a strip: components of d_key, a chunk's channels of d_value."""

    d_keys: list[list[Vector]]
    d_values: list[list[Vector]]


class _Output(NamedTuple):
    """One output pixel, as `_add_tap` takes it: vectors, or registers of PTX."""

    query: list[Vector]
    g: list[Vector]
    start: Vector  # of the sum g . value: -delta
    normalizer: list[Vector]  # (factor), in the exact path (shift, factor), without softmax ()


class _Key(NamedTuple):
    """One key and tap, likewise."""

    key: list[Vector]
    prior: Vector
    value: list[Vector]
    d_key: list[Vector]
    d_value: list[Vector]


@dataclasses.dataclass(frozen=True)
class _Gather:
    """The sums over the outputs whose windows contain a strip of keys.

    Attributes:
      program: what it is part of.
      strip: the keys.
      logits: fast or exact.
      keys: prepared, for each key of the strip.
    """

    program: _Program
    strip: KeyStrip
    logits: LogitMath
    keys: list[list[Vector]]

    @classmethod
    def of(cls, program: _Program, strip: KeyStrip, fast: bool) -> "_Gather":
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

    def _add_chunk(self, chunk: Scalar, d_keys: list[list[Vector]]) -> list[list[Vector]]:
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
        values: list[list[Vector]],
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
    ) -> _Output:
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
    logits: LogitMath, ops: Ops, output: _Output, key: _Key
) -> tuple[list[Vector], list[Vector]]:
    """Adds a tap to (d_key, d_value) of a key."""
    weight, slopes = logits.logit(ops, key.key, output.query, key.prior)
    d_logit = dot(ops, output.g, key.value, output.start)
    if output.normalizer:
        *shift, factor = output.normalizer
        if shift:
            weight = (weight - shift[0]) * LOG2E
        weight = ops.exp2(weight) * factor
        d_logit = weight * d_logit
    d_value = [ops.fma(weight, x, y) for x, y in zip(output.g, key.d_value, strict=True)]
    return logits.accumulate(ops, key.d_key, d_logit, slopes), d_value
