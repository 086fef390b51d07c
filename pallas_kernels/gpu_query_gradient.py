"""The kernel for d_query and d_prior; `gpu_backward` has the equations. A lane owns output pixels.

d_prior is a sum over all pixels into few numbers. A lane keeps its group over several strips
(`turns`) and adds each window row's Kw sums to a column of memory that is its own: no shuffles, no
atomics, and few enough lanes that the columns stay in the L2 cache. XLA adds up the columns.
"""

import dataclasses
import functools
from collections.abc import Callable
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
    Layout,
    Strips,
    base,
    both,
    join,
    load,
    load_priors,
    loop,
    result,
    store,
)
from pallas_kernels.gpu_problem import LOG2E, Problem, Similarity, Vector
from pallas_kernels.gpu_window import OutputStrip, strip_range
from pallas_kernels.tiling import Tile

# A factor in this range may be multiplied into g: products g * value up to 3e32 do not overflow.
SMALLEST_FACTOR = 2.0**-20
LARGEST_FACTOR = 2.0**20

# What a program of the query kernel finds out about its pixels.
PLAIN, WIDE_FACTOR, SHIFTED = 0, 1, 2


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
    strips = Strips(*problem.out_size, tile.strip, problem.groups, problem.batch)
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
            _query_kernel, problem, tile, strips, per_turn, Alu(inline=not interpret)
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
        sums = Sums(pairs, _by_key_row(problem, findings))
    if problem.has_prior:
        columns = rest[0].reshape(problem.spec.taps, per_turn // problem.groups, problem.groups)
        d_prior = jnp.sum(columns, axis=1)
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
    problem: Problem, tile: Tile, strips: Strips, per_turn: int, alu: Alu, *refs: Any
) -> None:
    q_ref, k_ref, v_ref, *left = refs
    prior_refs, left = left[: problem.has_prior], left[problem.has_prior :]
    g_ref, *left = left
    if problem.softmax:
        out_ref, shift_ref, factor_ref, d_query_ref, pairs_ref, findings_ref, *left = left
    else:
        d_query_ref, *left = left
    softmax, kw = problem.softmax, problem.spec.kernel_size[1]
    program = pl.program_id(0)
    column_of_lane = program * tile.lanes + jnp.arange(tile.lanes, dtype=jnp.int32)
    zero = jnp.zeros((tile.lanes,), jnp.float32)

    def turn(turns_before: Any, carry: Any) -> Any:
        first = program * tile.lanes + turns_before * per_turn
        lane = column_of_lane + turns_before * per_turn
        live = (column_of_lane < per_turn) & (lane < strips.lanes)
        # Lanes without work look at the last strip, multiply by zero and store nothing.
        place = strips.place(jnp.minimum(lane, strips.lanes - 1))
        ragged = problem.out_size[1] % tile.strip > 0
        whole = OutputStrip(problem, alu, place, live, tile.strip, ragged)
        group = whole.group

        def load_gradient(strip: OutputStrip, chunk: Any, ref: Any = g_ref) -> list[list[Vector]]:
            channels = Channels.of(problem, group, chunk)
            bases = channels.bases(strip.last_pixel)
            return [
                channels.load(alu, ref, bases, strip.back(i), strip.ok[i])
                for i in range(strip.count)
            ]

        # Kept in registers unless there are several chunks.
        gradient = load_gradient(whole, 0) if problem.chunks == 1 else []

        def gather(
            strip: OutputStrip,
            pairs: list[tuple[Vector, Vector]],
            earlier: Any,
            fast: bool,
            masked: bool,
        ) -> None:
            """Sums over the taps of a strip.

            Args:
              strip: whole, or one pixel of it.
              pairs: (factor, -delta) of each pixel.
              earlier: pixels of this turn that already added to d_prior.
              fast: shifts are 0, factors may be multiplied into g.
              masked: the strip may touch the left or right border.
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
                g = list(gradient) if gradient and strip is whole else load_gradient(strip, chunk)
                start = (
                    [minus_delta for _, minus_delta in pairs] if softmax else [zero] * strip.count
                )
                if problem.chunks > 1:  # delta counts once
                    start = [jnp.where(chunk == 0, x, 0.0) for x in start]
                if fast and softmax:

                    def scale(ops: Any, g: Any, start: Any, factor: Any) -> Any:
                        return [x * factor for x in g], start * factor

                    for i in range(strip.count):
                        g[i], start[i] = alu.fuse(scale, g[i], start[i], pairs[i][0])

                def add_row(number: Any, sums: Any) -> Any:
                    sums = [list(x) for x in sums]
                    row = strip.row(number, channels)
                    priors = load_priors(problem, fast, prior_refs, number, group, row.valid)
                    d_priors = [zero] * kw
                    for column, users in strip.taps.items():
                        mask = strip.column_mask(column) if masked else None
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
                        add_priors(number, d_priors, turns_before + chunk + earlier)
                    return sums

                return loop(problem.spec.kernel_size[0], add_row, sums)

            sums = loop(problem.chunks, add_chunk, [[zero] * problem.depth] * strip.count)
            for i in range(strip.count):
                strip.store_query(d_query_ref, i, [similarity.finish(x) for x in sums[i]])

        def add_priors(row: Any, d_priors: list[Vector], earlier: Any) -> None:
            """Adds a window row's sums to this lane's column, which starts undefined."""
            index = base((row * kw + (kw - 1)) * per_turn + column_of_lane)
            mine = None if per_turn % tile.lanes == 0 else column_of_lane < per_turn
            for dx, total in enumerate(d_priors):
                where = index + (dx + 1 - kw) * per_turn
                if not isinstance(earlier, int):
                    again = jnp.broadcast_to(earlier > 0, where.shape)
                    total = total + load(left[0], where, both(mine, again), 0.0)
                store(alu, left[0], where, total, mine)

        if not softmax:
            gather(whole, [], 0, fast=False, masked=True)
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
            # Of lanes without work too: what they multiply by zero must be finite.
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
                gather(strip, [(factor, -deltas(strip)[0])], i, fast=False, masked=True)
                return carry

            loop(tile.strip, one, 0)

        low, high = strip_range(problem, tile.strip)
        free = strips.inside(first, tile.lanes, low, high) if low <= high else None
        choose(
            worst == PLAIN,
            free,
            functools.partial(gather, whole, pairs, 0, fast=True),
            exact,
        )
        return carry

    loop(tile.turns, turn, 0)


def choose(
    fast: jax.Array,
    free: jax.Array | None,
    gather: Callable[..., None],
    exact: Callable[[], None],
) -> None:
    """Runs the cheapest form that the program's pixels allow."""

    def quick() -> None:
        if free is None:
            gather(masked=True)
        else:
            lax.cond(free, lambda: gather(masked=False), lambda: gather(masked=True))

    lax.cond(fast, quick, exact)
