"""The kernel for d_query and d_prior; `backward_pass` has the equations. A lane owns output pixels.

d_prior is a sum over all pixels into few numbers. A lane keeps its group over several strips
(`turns`) and adds each window row's Kw sums to a column of memory that is its own: no shuffles, no
atomics, and few enough lanes that the columns stay in the L2 cache. XLA adds up the columns.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.pallas.arithmetic import Alu, dot, opaque
from pallas_kernels.pallas.lanes import (
    PRIORS,
    Channels,
    Layout,
    base,
    both,
    join,
    load,
    load_priors,
    loop,
    padded,
    result,
    span,
    split,
    store,
)
from pallas_kernels.pallas.output_strip import OutputStrip, output_strips, window_rows
from pallas_kernels.pallas.problem import LOG2E, Problem, Similarity, Vector
from pallas_kernels.pallas.strips import Form, Strips, by_form
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.spec import Normalizer

# A factor in this range may be multiplied into g: products g * value up to 3e32 do not overflow.
SMALLEST_FACTOR = 2.0**-20
LARGEST_FACTOR = 2.0**20

# What a program of the query kernel finds out about its pixels.
PLAIN, WIDE_FACTOR, SHIFTED = 0, 1, 2


# The gradient of the output and the start of the sums g . value, for each pixel.
Gradient = tuple[list[list[Vector]], list[Vector]]


@dataclasses.dataclass(frozen=True)
class Sums:
    """What the query kernel leaves for the key kernel.

    Attributes:
      pairs: flat float32, (factor, -delta) per pixel and group.
      findings: flat int32, the worst in the output rows that look at a row of keys: one per image
        and row.
    """

    pairs: jax.Array
    findings: jax.Array


def query_strips(problem: Problem, tile: Tile) -> tuple[Strips, list[Form], int]:
    """How programs cover the output, the forms of code, and rounds of images per program."""
    strips, forms = output_strips(problem, tile, problem.groups)
    rounds = min(tile.turns, strips.grid[2])
    parts = min(tile.turns // rounds, strips.rows)
    return dataclasses.replace(strips, parts=parts), forms, rounds


def query_side(
    problem: Problem,
    tile: Tile,
    interpret: bool,
    arrays: list[jax.Array],
    out: jax.Array,
    d_out: jax.Array,
    normalizer: Normalizer | None,
) -> tuple[jax.Array, jax.Array | None, Sums | None]:
    """(d_query as in memory, d_prior as (Kh, G, Kw), the sums of a softmax)."""
    strips, forms, rounds = query_strips(problem, tile)
    along, across, _ = strips.grid
    grid = along, across, pl.cdiv(strips.grid[2], rounds)
    columns = strips.part * across * grid[2]
    places = strips.batch * strips.rows * strips.columns * problem.groups
    shapes = [Layout.depth(problem, 0).result(d_out, places * problem.depth)]
    inputs = [*arrays, d_out]
    if problem.softmax:
        assert normalizer is not None
        inputs += [out, *(x.reshape(-1) for x in normalizer)]
        shapes += [
            result(d_out, 2 * places, jnp.float32),
            result(d_out, strips.batch * across * strips.rows * problem.groups, jnp.int32),
        ]
    if problem.has_prior:
        kh, kw = problem.spec.kernel_size
        shapes.append(result(d_out, kh * columns * padded(kw), jnp.float32))
    d_query, *rest = pl.pallas_call(
        functools.partial(
            _query_kernel, problem, strips, forms, rounds, columns, Alu(inline=not interpret)
        ),
        grid=grid,
        out_shape=shapes,
        compiler_params=plt.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name="local_relation_backward_query",
    )(*inputs)
    sums = d_prior = None
    if problem.softmax:
        pairs, findings, *rest = rest
        sums = Sums(pairs, _by_key_row(problem, findings))
    if problem.has_prior:
        d_prior = jnp.sum(rest[0].reshape(kh, -1, problem.groups, padded(kw)), axis=1)[..., :kw]
    return d_query, d_prior, sums


def _by_key_row(problem: Problem, findings: jax.Array) -> jax.Array:
    """Findings of the query kernel's lanes as in `Sums`."""
    spec, (rows, _) = problem.spec, problem.out_size
    lanes = findings.reshape(problem.batch, -1, rows, problem.groups)
    of_row = jnp.max(lanes, axis=(1, 3))[:, None]  # (B, 1, Ho)
    offset = jnp.arange(problem.height)[:, None] + spec.padding[0]
    offset = offset - jnp.arange(rows) * spec.stride  # (H, Ho), into the window
    looks = (offset >= 0) & (offset <= (spec.kernel_size[0] - 1) * spec.dilation)
    return jnp.max(jnp.where(looks, of_row, PLAIN), axis=2).reshape(-1)


def _query_kernel(
    problem: Problem,
    strips: Strips,
    forms: Sequence[Form],
    rounds: int,
    columns: int,
    alu: Alu,
    *refs: Any,
) -> None:
    q_ref, k_ref, v_ref, *left = refs
    prior_refs, left = left[: problem.has_prior], left[problem.has_prior :]
    g_ref, *left = left
    if problem.softmax:
        out_ref, shift_ref, factor_ref, d_query_ref, pairs_ref, findings_ref, *left = left
    else:
        d_query_ref, *left = left
    softmax, (kh, kw) = problem.softmax, problem.spec.kernel_size
    along, number, group_of_rounds = (pl.program_id(axis) for axis in range(3))
    first = along * strips.per_program
    lane = first + jnp.arange(strips.per_program, dtype=jnp.int32)
    first_column = (group_of_rounds * strips.per_row + number) * strips.part
    has_column = None if strips.part % strips.per_program == 0 else lane < strips.part
    zero = jnp.zeros((strips.per_program,), jnp.float32)

    last = padded(kw) - PRIORS

    def priors_at(row: Any) -> list[jax.Array]:
        """Where this lane's column of memory has the sums of a window row."""
        # Opaque, so that no sum with `lane` takes another register all the time.
        column = row * columns + first_column + opaque(lane, jnp.int32(row))
        start = base(column * padded(kw) + last, PRIORS)
        return [span(start, i - last, PRIORS) for i in range(0, kw, PRIORS)]

    if problem.has_prior:

        def clear(row: Any, carry: Any) -> Any:
            for where in priors_at(row):
                store(alu, left[0], where, join([zero] * PRIORS), has_column)
            return carry

        loop(kh, clear, 0)

    def turn(images: Any, part: Any) -> None:
        start_row, end_row = window_rows(problem, strips, part * strips.part + first)
        place = strips.place(first, number, images, part)
        ragged = problem.out_size[1] % strips.strip > 0
        whole = OutputStrip(problem, alu, place, strips.strip, ragged)
        group = whole.group

        def load_gradient(strip: OutputStrip, chunk: Any, ref: Any = g_ref) -> list[list[Vector]]:
            channels = Channels.of(problem, group, chunk)
            bases = channels.bases(strip.last_pixel)
            return [
                channels.load(alu, ref, bases, strip.back(i), strip.ok[i])
                for i in range(strip.count)
            ]

        def prepared(
            g: list[list[Vector]], pairs: list[tuple[Vector, Vector]], chunk: Any, fast: bool
        ) -> Gradient:
            """(g, -delta), both times the factor if `fast`, for a chunk of channels."""
            start = [minus_delta for _, minus_delta in pairs] if softmax else [zero] * len(g)
            if problem.chunks > 1:  # delta counts once
                start = [jnp.where(chunk == 0, x, 0.0) for x in start]
            if not (fast and softmax):
                return g, start

            def scale(ops: Any, g: Any, start: Any, factor: Any) -> Any:
                return [x * factor for x in g], start * factor

            scaled = [
                alu.fuse(scale, x, y, factor)
                for x, y, (factor, _) in zip(g, start, pairs, strict=True)
            ]
            return [x for x, _ in scaled], [y for _, y in scaled]

        # Kept in registers unless there are several chunks.
        gradient = load_gradient(whole, 0) if problem.chunks == 1 else []

        def gather(
            strip: OutputStrip,
            pairs: list[tuple[Vector, Vector]],
            fast: bool,
            kept: Gradient | None = None,
        ) -> None:
            """Sums over the taps of a strip.

            Args:
              strip: whole, as one of the forms, or one pixel of it.
              pairs: (factor, -delta) of each pixel.
              fast: shifts are 0, factors may be multiplied into g.
              kept: what `prepared` gave, if registers hold it.
            """
            similarity = Similarity(problem, fast)
            if fast and softmax:
                q = queries
            else:
                q = [similarity.centre(strip.load_query(q_ref, i)) for i in range(strip.count)]
            normalizers: list[list[Vector]] = [[]] * strip.count
            if softmax and not fast:
                normalizers = [
                    [load(shift_ref, strip.place(i), strip.fits[i], 0.0), pairs[i][0]]
                    for i in range(strip.count)
                ]

            def tap(
                ops: Any, k: Any, v: Any, q: Any, prior: Any, g: Any, start: Any, normalizer: Any,
                sums: Any, d_prior: Any,
            ) -> Any:  # fmt: skip
                logit, parts = similarity.logit(ops, q, k, prior)
                d_logit = dot(ops, g, v, start)
                if softmax and fast:
                    d_logit = ops.exp2(logit) * d_logit
                elif softmax:
                    shift, factor = normalizer
                    d_logit = ops.exp2((logit - shift) * LOG2E) * factor * d_logit
                return similarity.accumulate(ops, sums, d_logit, parts), d_prior + d_logit

            def add_chunk(chunk: Any, sums: Any) -> Any:
                channels = Channels.of(problem, group, chunk)
                g, start = kept or prepared(load_gradient(strip, chunk), pairs, chunk, fast)

                def add_row(number: Any, sums: Any) -> Any:
                    sums = [list(x) for x in sums]
                    row = strip.row(number, channels)
                    priors = load_priors(problem, fast, prior_refs, number, group, row.valid)
                    d_priors = [zero] * kw
                    for column, users in strip.taps.items():
                        mask = strip.column_mask(column)
                        if not softmax:
                            mask = both(mask, row.valid)
                        k = strip.load_key(k_ref, row, column, mask)
                        v = strip.load_value(channels, v_ref, row, column, mask)
                        pixels = [
                            (
                                q[i], strip.masked_prior(priors[dx], i, mask), g[i], start[i],
                                normalizers[i], sums[i], d_priors[dx],
                            )
                            for i, dx in users
                        ]  # fmt: skip
                        new = alu.fuse_each(tap, (k, v), pixels)
                        for (i, dx), (of_query, of_prior) in zip(users, new, strict=True):
                            sums[i], d_priors[dx] = of_query, of_prior
                    if problem.has_prior:
                        add_priors(number, d_priors, strip.live)
                    return sums

                return loop(end_row, add_row, sums, start_row)

            sums = loop(problem.chunks, add_chunk, [[zero] * problem.depth] * strip.count)
            strip = strip.anew()
            for i in range(strip.count):
                strip.store_query(d_query_ref, i, [similarity.finish(x) for x in sums[i]])

        def add_priors(row: Any, d_priors: list[Vector], mask: Vector | None) -> None:
            """Adds a window row's sums to this lane's column."""
            for i, where in enumerate(priors_at(row)):
                sums = split(load(left[0], where, has_column))
                new = d_priors[i * PRIORS :][:PRIORS]
                sums = [x + y for x, y in zip(sums, new, strict=False)] + sums[len(new) :]
                store(alu, left[0], where, join(sums), mask)

        def gather_all(pairs: list[tuple[Vector, Vector]], fast: bool) -> None:
            # Before the forms: what they share is in registers once.
            kept = prepared(gradient, pairs, 0, fast) if gradient else None
            by_form(forms, number, lambda form: gather(whole.of_form(form), pairs, fast, kept))

        if not softmax:
            gather_all([], fast=False)
            return

        def deltas(strip: OutputStrip) -> list[Vector]:
            """The sum g . out of each pixel."""

            def add_chunk(chunk: Any, delta: Any) -> Any:
                g = gradient if gradient and strip is whole else load_gradient(strip, chunk)
                out = load_gradient(strip, chunk, out_ref)
                return [alu.fuse(dot, g[i], out[i], delta[i]) for i in range(strip.count)]

            return loop(problem.chunks, add_chunk, [zero] * strip.count)

        delta = deltas(whole)
        shifted = wide = jnp.zeros_like(zero, bool)
        trust = Similarity(problem, fast=True)
        queries = [trust.centre(whole.load_query(q_ref, i)) for i in range(whole.count)]
        pairs = []
        for i, fits in enumerate(whole.fits):
            factor = load(factor_ref, whole.place(i), fits, 0.0)
            odd = load(shift_ref, whole.place(i), fits, 0.0) != 0.0
            for distrusted in trust.distrusts(queries[i]):
                odd |= distrusted
            far = ~((factor >= SMALLEST_FACTOR) & (factor <= LARGEST_FACTOR))
            shifted |= odd if fits is None else odd & fits
            wide |= far if fits is None else far & fits
            pairs.append((factor, -delta[i]))
            store(alu, pairs_ref, whole.pair(i), join(pairs[i]), whole.ok[i])
        finding = jnp.where(shifted, SHIFTED, jnp.where(wide, WIDE_FACTOR, PLAIN))
        worst = jnp.max(finding)
        row = (place.image * strips.per_row + number) * strips.rows + place.row
        store(alu, findings_ref, row * problem.groups + group, finding, place.live)

        def exact() -> None:
            """Pixel by pixel: rare, so kept small."""

            def one(i: Any, carry: Any) -> Any:
                strip = whole.pixel(i)
                factor = load(factor_ref, strip.place(0), strip.fits[0], 0.0)
                gather(strip, [(factor, -deltas(strip)[0])], fast=False)
                return carry

            loop(whole.count, one, 0)

        lax.cond(worst == PLAIN, lambda: gather_all(pairs, fast=True), exact)

    def one_round(earlier: Any, carry: Any) -> Any:
        def one_part(part: Any, carry: Any) -> Any:
            turn(group_of_rounds * rounds + earlier, part)
            return carry

        return loop(strips.parts, one_part, carry)

    left_over = strips.grid[2] - group_of_rounds * rounds
    loop(jnp.minimum(rounds, left_over) if strips.grid[2] % rounds else rounds, one_round, 0)
