"""The gradients of one strip of output pixels; `backward_pass` has the equations.

A lane keeps the pixels' queries, the gradients of their outputs and their sums in registers. As in
the forward kernel it loops over window rows and visits the columns of keys of a row one by one, so
that each key and value that it loads serves all pixels of the strip.

A program first examines the normalizers of its pixels. If all shifts are 0 and all factors are of
moderate size, the fast path multiplies the factors into the gradients once per pixel instead of
once per tap. Otherwise the exact path computes the strip again pixel by pixel.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax

from pallas_kernels.pallas.lanes.arithmetic import Number, Ops
from pallas_kernels.pallas.lanes.channels import Channels
from pallas_kernels.pallas.lanes.logits import LogitMath
from pallas_kernels.pallas.lanes.memory import interleave, load, store
from pallas_kernels.pallas.lanes.vectors import Scalar, Vector, Vectors, loop
from pallas_kernels.pallas.output_strip import OutputStrip
from pallas_kernels.pallas.query_taps import PLAIN, SHIFTED, WIDE_FACTOR, Gradient, Program, Taps
from pallas_kernels.pallas.strips import by_border_case

# A factor in this range may be multiplied into g: products g * value up to 3e32 do not overflow.
MIN_FACTOR = 2.0**-20
MAX_FACTOR = 2.0**20

Pairs = list[tuple[Vector, Vector]]
"""(factor, -delta) of each pixel of a strip; [] without softmax."""


@dataclasses.dataclass(frozen=True)
class StripPass:
    """The work of one strip.

    Attributes:
      program: what it shares with others.
      strip: the pixels.
      rows: start and end of the loop over window rows.
      d_out: gradient of the output, kept in registers; [] if a group has several chunks.
    """

    program: Program
    strip: OutputStrip
    rows: tuple[Scalar, Scalar]
    d_out: list[Vectors]

    @classmethod
    def of(cls, program: Program, strip: OutputStrip, rows: tuple[Scalar, Scalar]) -> "StripPass":
        """Loads what stays in registers."""
        keep = program.problem.chunks == 1
        return cls(program, strip, rows, program.load(program.d_out, strip, 0) if keep else [])

    def run(self) -> None:
        """Computes and stores all results."""
        if not self.program.problem.softmax:
            self._gather_all([], None)
            return
        delta = self._deltas(self.strip)
        pairs, queries, severity = self._examine(delta)
        worst = jnp.max(severity)
        self._store_severity(severity)
        lax.cond(worst == PLAIN, lambda: self._gather_all(pairs, queries), self._exact)

    def _deltas(self, strip: OutputStrip) -> Vectors:
        """The sum g . out of each pixel."""
        program, out = self.program, self.program.out
        assert out is not None

        def add_chunk(chunk: Scalar, delta: Vectors) -> Vectors:
            kept = self.d_out if strip is self.strip else []
            g = kept or program.load(program.d_out, strip, chunk)
            y = program.load(out, strip, chunk)
            return [
                program.alu.inline(lambda ops, *x: ops.dot(*x), *x)
                for x in zip(g, y, delta, strict=True)
            ]

        return loop(program.problem.chunks, add_chunk, [program.zero] * strip.count)

    def _examine(self, delta: Vectors) -> tuple[Pairs, list[Vectors], Vector]:
        """Stores the pairs; returns them, the prepared queries, and the severity of each lane."""
        program, strip = self.program, self.strip
        normalizer, results = program.normalizer, program.results
        assert normalizer is not None
        assert results.pairs is not None
        shifted = wide = jnp.zeros_like(program.zero, bool)
        logits = LogitMath(program.problem, fast=True)
        queries = [logits.stationary(strip.load_query(i)) for i in range(strip.count)]
        pairs = []
        for i, in_image in enumerate(strip.in_image):
            factor = load(normalizer.factor, strip.place(i), in_image, 0.0)
            shifted_here = load(normalizer.shift, strip.place(i), in_image, 0.0) != 0.0
            for imprecise in logits.imprecise(queries[i]):
                shifted_here |= imprecise
            wide_here = ~((factor >= MIN_FACTOR) & (factor <= MAX_FACTOR))
            shifted |= shifted_here if in_image is None else shifted_here & in_image
            wide |= wide_here if in_image is None else wide_here & in_image
            pairs.append((factor, -delta[i]))
            index, mask = strip.pair(i), strip.store_mask[i]
            store(program.alu, results.pairs, index, interleave(pairs[i]), mask)
        severity = jnp.where(shifted, SHIFTED, jnp.where(wide, WIDE_FACTOR, PLAIN))
        return pairs, queries, severity

    def _store_severity(self, severity: Vector) -> None:
        program, place = self.program, self.strip.origin
        assert program.results.severity is not None
        row = place.image * program.strips.strips_per_row + program.column
        row = row * program.strips.rows + place.row
        index = row * program.problem.groups + place.unit
        store(program.alu, program.results.severity, index, severity, place.active)

    def _gather_all(self, pairs: Pairs, queries: list[Vectors] | None) -> None:
        """The whole strip, by the fast path if there is a softmax.

        Args:
          pairs: of the pixels.
          queries: prepared for fast logits; None loads them.
        """
        program = self.program
        logits = LogitMath(program.problem, fast=program.problem.softmax)
        # Before the border cases, so that all of them find it in the same registers.
        kept = _prepared(program, logits, self.d_out, pairs, 0) if self.d_out else None
        by_border_case(
            program.cases,
            program.column,
            lambda case: self._gather(logits, self.strip.of_case(case), pairs, queries, kept),
        )

    def _exact(self) -> None:
        """Pixel by pixel, because it runs rarely and must not enlarge the kernel."""
        normalizer, logits = self.program.normalizer, LogitMath(self.program.problem, fast=False)
        assert normalizer is not None

        def one_pixel(i: Scalar, carry: int) -> int:
            strip = self.strip.pixel(i)
            factor = load(normalizer.factor, strip.place(0), strip.in_image[0], 0.0)
            pairs = [(factor, -self._deltas(strip)[0])]
            self._gather(logits, strip, pairs, None, None)
            return carry

        loop(self.strip.count, one_pixel, 0)

    def _gather(
        self,
        logits: LogitMath,
        strip: OutputStrip,
        pairs: Pairs,
        queries: list[Vectors] | None,
        kept: Gradient | None,
    ) -> None:
        """Sums over the taps of a strip, and stores the gradients of its queries."""
        program, normalizer = self.program, self.program.normalizer
        if queries is None:
            queries = [logits.stationary(strip.load_query(i)) for i in range(strip.count)]
        normalizers: list[Vectors] = [[]] * strip.count
        if normalizer is not None and not logits.fast:
            normalizers = [
                [load(normalizer.shift, strip.place(i), strip.in_image[i], 0.0), pairs[i][0]]
                for i in range(strip.count)
            ]
        taps = Taps(program, strip, self.rows, logits, queries, normalizers)

        def add_chunk(chunk: Scalar, sums: list[Vectors]) -> list[Vectors]:
            channels = Channels.of(program.problem, strip.origin.unit, chunk)
            gradient = kept
            if gradient is None:
                g = program.load(program.d_out, strip, chunk)
                gradient = _prepared(program, logits, g, pairs, chunk)
            return taps.add_chunk(channels, gradient, sums)

        zeros = [[program.zero] * program.problem.depth] * strip.count
        sums = loop(program.problem.chunks, add_chunk, zeros)
        strip = strip.rematerialized()
        for i in range(strip.count):
            strip.store_query(program.d_query, i, logits.finish(sums[i]))


def _prepared(
    program: Program, logits: LogitMath, g: list[Vectors], pairs: Pairs, chunk: Scalar
) -> Gradient:
    """The gradient of the output as the loop over taps takes it."""
    softmax = program.problem.softmax
    start = [minus_delta for _, minus_delta in pairs] if softmax else [program.zero] * len(g)
    if program.problem.chunks > 1:  # the first chunk adds delta, the others must not add it again
        start = [jnp.where(chunk == 0, x, 0.0) for x in start]
    if not (logits.fast and softmax):
        return Gradient(g, start)
    factors = [factor for factor, _ in pairs]
    scaled = [program.alu.inline(_scale, *x) for x in zip(g, start, factors, strict=True)]
    return Gradient([x for x, _ in scaled], [y for _, y in scaled])


def _scale(
    ops: Ops[Number], g: list[Number], start: Number, factor: Number
) -> tuple[list[Number], Number]:
    return [x * factor for x in g], start * factor
