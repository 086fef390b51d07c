"""The kernel for d_query and d_prior; `gpu_backward` has the equations. A lane owns output pixels.

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

from pallas_kernels.gpu_arithmetic import Alu, dot
from pallas_kernels.gpu_forward import Normalizer
from pallas_kernels.gpu_lanes import (
    Channels,
    Form,
    Layout,
    Strips,
    base,
    both,
    by_form,
    join,
    load,
    load_priors,
    loop,
    result,
    store,
)
from pallas_kernels.gpu_problem import LOG2E, Problem, Similarity, Vector
from pallas_kernels.gpu_window import OutputStrip, output_strips, window_rows
from pallas_kernels.tiling import Tile

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


def query_side(
    problem: Problem,
    tile: Tile,
    interpret: bool,
    arrays: list[jax.Array],
    out: jax.Array,
    d_out: jax.Array,
    normalizer: Normalizer | None,
) -> tuple[jax.Array, jax.Array | None, Sums | None]:
    """(d_query as in memory, d_prior as (Kh*Kw, G), the sums of a softmax)."""
    strips, forms = output_strips(problem, tile.strip, problem.groups)
    # Lanes side by side; each takes `turns` strips, this far apart, all of one group.
    per_turn = pl.cdiv(pl.cdiv(strips.lanes, tile.turns), problem.groups) * problem.groups
    programs = pl.cdiv(per_turn, tile.lanes)
    places = strips.batch * strips.rows * strips.columns * problem.groups
    shapes = [Layout.depth(problem, 0).result(d_out, places * problem.depth)]
    inputs = [*arrays, d_out]
    if problem.softmax:
        assert normalizer is not None
        inputs += [out, *(x.reshape(-1) for x in normalizer)]
        shapes += [
            result(d_out, 2 * places, jnp.float32),
            result(d_out, strips.lanes, jnp.int32),
        ]
    if problem.has_prior:
        shapes.append(result(d_out, problem.spec.taps * per_turn, jnp.float32))
    d_query, *rest = pl.pallas_call(
        functools.partial(
            _query_kernel, problem, tile, strips, forms, per_turn, Alu(inline=not interpret)
        ),
        grid=(programs,),
        out_shape=shapes,
        compiler_params=plt.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name="local_relation_backward_query",
    )(*inputs)
    sums = d_prior = None
    if problem.softmax:
        pairs, findings, *rest = rest
        sums = Sums(pairs, _by_key_row(problem, strips, findings))
    if problem.has_prior:
        columns = rest[0].reshape(problem.spec.taps, per_turn // problem.groups, problem.groups)
        d_prior = jnp.sum(columns, axis=1)
    return d_query, d_prior, sums


def _by_key_row(problem: Problem, strips: Strips, findings: jax.Array) -> jax.Array:
    """Findings of the query kernel's lanes as in `Sums`."""
    spec, (rows, _) = problem.spec, problem.out_size
    of_row = jnp.max(findings.reshape(strips.shape), axis=(1, 4))
    of_row = of_row.reshape(problem.batch, 1, rows)
    offset = jnp.arange(problem.height)[:, None] + spec.padding[0]
    offset = offset - jnp.arange(rows) * spec.stride  # (H, Ho), into the window
    looks = (offset >= 0) & (offset <= (spec.kernel_size[0] - 1) * spec.dilation)
    return jnp.max(jnp.where(looks, of_row, PLAIN), axis=2).reshape(-1)


def _query_kernel(
    problem: Problem,
    tile: Tile,
    strips: Strips,
    forms: Sequence[Form],
    per_turn: int,
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
    program = pl.program_id(0)
    column_of_lane = program * tile.lanes + jnp.arange(tile.lanes, dtype=jnp.int32)
    zero = jnp.zeros((tile.lanes,), jnp.float32)

    def priors_at(row: Any, dx: int) -> Vector:
        """Where this lane's column of memory has the sum of a tap."""
        return base((row * kw + (kw - 1)) * per_turn + column_of_lane) + (dx + 1 - kw) * per_turn

    has_column = None if per_turn % tile.lanes == 0 else column_of_lane < per_turn
    if problem.has_prior:

        def clear(row: Any, carry: Any) -> Any:
            for dx in range(kw):
                store(alu, left[0], priors_at(row, dx), zero, has_column)
            return carry

        loop(kh, clear, 0)

    def turn(turns_before: Any, carry: Any) -> Any:
        first = program * tile.lanes + turns_before * per_turn
        lane = column_of_lane + turns_before * per_turn
        live = (column_of_lane < per_turn) & (lane < strips.lanes)
        # Lanes without work look at the last strip and store nothing.
        place = strips.place(jnp.minimum(lane, strips.lanes - 1))
        ragged = problem.out_size[1] % tile.strip > 0
        whole = OutputStrip(problem, alu, place, live, tile.strip, ragged)
        group = whole.group
        start_row, end_row = window_rows(problem, strips, first, tile.lanes)

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
              strip: whole, for all or some lanes, or one pixel of it.
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
                ops: Any, q: Any, k: Any, prior: Any, g: Any, v: Any, start: Any, normalizer: Any,
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
                        for i, dx in users:
                            prior = strip.masked_prior(priors[dx], i, mask)
                            sums[i], d_priors[dx] = alu.fuse(
                                tap, q[i], k, prior, g[i], v, start[i], normalizers[i],
                                sums[i], d_priors[dx],
                            )  # fmt: skip
                    if problem.has_prior:
                        add_priors(number, d_priors, strip.live)
                    return sums

                return loop(end_row, add_row, sums, start_row)

            sums = loop(problem.chunks, add_chunk, [[zero] * problem.depth] * strip.count)
            for i in range(strip.count):
                strip.store_query(d_query_ref, i, [similarity.finish(x) for x in sums[i]])

        def add_priors(row: Any, d_priors: list[Vector], mask: Vector | None) -> None:
            """Adds a window row's sums to this lane's column."""
            for dx, total in enumerate(d_priors):
                where = priors_at(row, dx)
                store(alu, left[0], where, total + load(left[0], where, has_column), mask)

        def gather_all(pairs: list[tuple[Vector, Vector]], fast: bool) -> None:
            # Before the forms: what they share is in registers once.
            kept = prepared(gradient, pairs, 0, fast) if gradient else None

            def run(form: Form) -> None:
                gather(whole.of_form(strips, form), pairs, fast, kept)

            by_form(strips, forms, first, tile.lanes, run)

        if not softmax:
            gather_all([], fast=False)
            return carry

        def deltas(strip: OutputStrip) -> list[Vector]:
            """The sum g . out of each pixel."""

            def add_chunk(chunk: Any, delta: Any) -> Any:
                g = gradient if gradient and strip is whole else load_gradient(strip, chunk)
                out = load_gradient(strip, chunk, out_ref)
                return [alu.fuse(dot, g[i], out[i], delta[i]) for i in range(strip.count)]

            return loop(problem.chunks, add_chunk, [zero] * strip.count)

        delta = deltas(whole)
        shifted = wide = jnp.zeros((tile.lanes,), jnp.bool_)
        trust = Similarity(problem, fast=True)
        queries = [trust.centre(whole.load_query(q_ref, i)) for i in range(tile.strip)]
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
            store(alu, pairs_ref, whole.pair(i), join(*pairs[i]), whole.ok[i])
        finding = jnp.where(shifted, SHIFTED, jnp.where(wide, WIDE_FACTOR, PLAIN))
        worst = jnp.max(finding)
        store(alu, findings_ref, lane, finding, live)

        def exact() -> None:
            """Pixel by pixel: rare, so kept small."""

            def one(i: Any, carry: Any) -> Any:
                strip = whole.pixel(i)
                factor = load(factor_ref, strip.place(0), strip.fits[0], 0.0)
                gather(strip, [(factor, -deltas(strip)[0])], fast=False)
                return carry

            loop(tile.strip, one, 0)

        lax.cond(worst == PLAIN, lambda: gather_all(pairs, fast=True), exact)
        return carry

    loop(tile.turns, turn, 0)
