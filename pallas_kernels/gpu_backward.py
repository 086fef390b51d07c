"""Backward pass on an NVIDIA GPU: two Pallas kernels that gather; no atomics, so runs repeat.

With w the weight, g the gradient of the output and delta = g . out (both over a group's channels):

    d_logit = w * (g . value - delta)                     (without softmax: g . value)
    d_query = sum over taps    d_logit * dPhi/dquery      query kernel: a lane owns output pixels
    d_prior = sum over pixels  d_logit                    query kernel
    d_key   = sum over taps    d_logit * dPhi/dkey        key kernel: a lane owns input pixels
    d_value = sum over taps    w * g                      key kernel

Weights are computed again from the saved normaliser, weight = exp(logit - shift) * factor. Where
the forward pass needed no maximum, shift is 0 and drops out; every program of the query kernel
looks whether that holds for its pixels, and leaves a flag from which the key kernel, which gathers
from anywhere, knows whether it holds everywhere.

d_prior is a sum over all pixels into few numbers. A lane keeps its group over several strips
(`turns`) and adds each window row's Kw sums to a column of memory that is its own: no shuffles, no
atomics, and few enough lanes that the columns stay in the L2 cache. XLA adds up the columns.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.gpu_forward import Normalizer, strip_range, window_columns
from pallas_kernels.gpu_lanes import (
    LOG2E,
    Alu,
    Channels,
    Problem,
    Scalar,
    Similarity,
    Strips,
    Vector,
    base,
    both,
    flatten,
    load,
    load_depth,
    load_priors,
    loop,
    scaled_prior,
    store,
    store_depth,
)
from pallas_kernels.spec import Spec
from pallas_kernels.tiling import Tile, key_tile, query_tile

# A factor in this range may be multiplied into g: products g * value up to 3e32 do not overflow.
SMALLEST_FACTOR = 2.0**-20
LARGEST_FACTOR = 2.0**20

# What a program of the query kernel finds out about its pixels.
PLAIN, WIDE_FACTOR, SHIFTED = 0, 1, 2


def backward(
    spec: Spec,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
    out: jax.Array,
    normalizer: Normalizer | None,
    d_out: jax.Array,
    *,
    interpret: bool = False,
    tiles: tuple[Tile, Tile] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Gradients of query, key, value and prior, each in the dtype of its array.

    Args:
      spec: the static options.
      query: (B, Ho, Wo, G, D).
      key: (B, H, W, G, D).
      value: (B, H, W, C).
      prior: (G, Kh, Kw) or None.
      out: (B, Ho, Wo, C), of the forward pass.
      normalizer: of the forward pass.
      d_out: (B, Ho, Wo, C).
      interpret: run the kernels in JAX's interpreter, on any platform, slowly.
      tiles: of the query and the key kernel; None picks them, see tiling.py.
    """
    problem = Problem.of(spec, query, key, value, prior)
    for_query, for_key = tiles or (query_tile(problem), key_tile(problem))
    arrays = [x.reshape(-1) for x in (query, key, value)]
    arrays += scaled_prior(problem, prior)
    d_out = d_out.reshape(-1)
    shift, factor = (x.reshape(-1) for x in normalizer) if normalizer else (None, None)
    d_query, delta, flag, d_prior = query_side(
        problem, for_query, interpret, arrays, out.reshape(-1), d_out, shift, factor
    )
    d_key, d_value = key_side(
        problem, for_key, interpret, arrays, d_out, shift, factor, delta, flag
    )
    if prior is not None:
        assert d_prior is not None
        d_prior = d_prior.T.reshape(prior.shape).astype(prior.dtype)
    return (
        d_query.reshape(query.shape),
        d_key.reshape(key.shape),
        d_value.reshape(value.shape),
        d_prior,
    )


def query_side(
    problem: Problem,
    tile: Tile,
    interpret: bool,
    arrays: list[jax.Array],
    out: jax.Array,
    d_out: jax.Array,
    shift: jax.Array | None,
    factor: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None, jax.Array | None]:
    """(d_query, delta, flag, d_prior): d_prior as (Kh*Kw, G)."""
    strips = Strips(*problem.out_size, tile.strip, problem.groups, problem.batch)
    # Lanes side by side; each takes `turns` strips, this far apart, all of one group.
    per_turn = pl.cdiv(pl.cdiv(strips.lanes, tile.turns), problem.groups) * problem.groups
    programs = pl.cdiv(per_turn, tile.lanes)
    pixels = strips.batch * strips.rows * strips.columns * problem.groups
    shapes = [jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)]
    inputs = [*arrays, d_out]
    if problem.softmax:
        assert shift is not None
        assert factor is not None
        inputs += [out, shift, factor]
        shapes += [
            jax.ShapeDtypeStruct((pixels,), jnp.float32),
            jax.ShapeDtypeStruct((programs * tile.turns,), jnp.int32),
        ]
    if problem.has_prior:
        shapes.append(jax.ShapeDtypeStruct((problem.spec.taps * per_turn,), jnp.float32))
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
    delta = flag = d_prior = None
    if problem.softmax:
        delta, flags, *rest = rest
        flag = jnp.max(flags).reshape(1)
    if problem.has_prior:
        columns = rest[0].reshape(problem.spec.taps, per_turn // problem.groups, problem.groups)
        d_prior = jnp.sum(columns, axis=1)
    return d_query, delta, flag, d_prior


def _query_kernel(
    problem: Problem, tile: Tile, strips: Strips, per_turn: int, alu: Alu, *refs: Any
) -> None:
    q_ref, k_ref, v_ref, *left = refs
    prior_refs, left = left[: problem.has_prior], left[problem.has_prior :]
    g_ref, *left = left
    if problem.softmax:
        out_ref, shift_ref, factor_ref, d_query_ref, delta_ref, flag_ref, *left = left
    else:
        d_query_ref, *left = left
    spec, strip, softmax = problem.spec, tile.strip, problem.softmax
    (kh, kw), (pad_y, pad_x), s = spec.kernel_size, spec.padding, spec.stride
    ho, wo = problem.out_size
    program = pl.program_id(0)
    column_of_lane = program * tile.lanes + jnp.arange(tile.lanes, dtype=jnp.int32)
    taps = window_columns(problem, strip)
    last = max(taps)
    zero = jnp.zeros((tile.lanes,), jnp.float32)

    def turn(number: Any, carry: Any) -> Any:
        first = program * tile.lanes + number * per_turn
        lane = column_of_lane + number * per_turn
        live = (column_of_lane < per_turn) & (lane < strips.lanes)
        # Lanes without work look at the last strip, multiply by zero and store nothing.
        image, y, x0, group = strips.place(jnp.minimum(lane, strips.lanes - 1))
        last_pixel = (image * ho + y) * wo + x0 + (strip - 1)
        pixel_index = base(last_pixel * problem.groups + group)
        query_index = base((last_pixel * problem.groups + group) * problem.depth)
        fits = [None if wo % strip == 0 else x0 + i < wo for i in range(strip)]
        ok = [both(live, x) for x in fits]

        def at(i: int) -> int:
            return i + 1 - strip

        def load_query(i: int) -> list[Vector]:
            index = query_index + at(i) * problem.groups * problem.depth
            return load_depth(alu, problem, q_ref, index, fits[i], far=softmax)

        def load_gradient(chunk: Scalar) -> list[list[Vector]]:
            channels = Channels.of(problem, group, chunk)
            bases = channels.bases(last_pixel)
            return [flatten(channels.load(alu, g_ref, bases, at(i), ok[i])) for i in range(strip)]

        def load_factor(i: int) -> Vector:
            return load(factor_ref, pixel_index + at(i) * problem.groups, fits[i], 0.0)

        def load_shift(i: int) -> Vector:
            return load(shift_ref, pixel_index + at(i) * problem.groups, fits[i], 0.0)

        # Loaded here once unless there are several chunks.
        whole = load_gradient(0) if problem.chunks == 1 else None

        def dot_out(chunk: Any, delta: Any) -> Any:
            channels = Channels.of(problem, group, chunk)
            bases = channels.bases(last_pixel)
            out = [flatten(channels.load(alu, out_ref, bases, at(i), ok[i])) for i in range(strip)]
            g = whole or load_gradient(chunk)
            return [alu.dot(g[i], out[i], delta[i]) for i in range(strip)]

        def window_row(row: Any) -> tuple[Vector, Vector, Vector]:
            yi = y * s + row * spec.dilation - pad_y
            clamped = jnp.clip(yi, 0, problem.height - 1)
            end = (image * problem.height + clamped) * problem.width + x0 * s + (last - pad_x)
            keys = base((end * problem.groups + group) * problem.depth)
            return keys, end, (yi >= 0) & (yi < problem.height)

        def gather(delta: list[Vector], fast: bool, masked: bool) -> None:
            """Sums over the taps. `fast`: shifts are 0, factors may be multiplied into g."""
            similarity = Similarity(problem, alu, fast)
            q = [similarity.centre(load_query(i)) for i in range(strip)]
            factor = [load_factor(i) for i in range(strip)] if softmax else []
            shift = [load_shift(i) for i in range(strip)] if softmax and not fast else []

            def add_chunk(chunk: Any, sums: Any) -> Any:
                channels = Channels.of(problem, group, chunk)
                g = whole or load_gradient(chunk)
                minus = [-x for x in delta]
                if problem.chunks > 1:  # delta counts once
                    minus = [jnp.where(chunk == 0, x, 0.0) for x in minus]
                if fast and softmax:
                    g = [[x * factor[i] for x in g[i]] for i in range(strip)]
                    minus = [minus[i] * factor[i] for i in range(strip)]

                def add_row(row: Any, sums: Any) -> Any:
                    sums = [list(x) for x in sums]
                    keys, end, valid = window_row(row)
                    values = channels.bases(end)
                    priors = load_priors(problem, fast, prior_refs, row, group, valid)
                    d_priors = [zero] * kw
                    for column, users in taps.items():
                        mask = None
                        if masked:  # one comparison: negative is large
                            x = (x0 * s + (column - pad_x)).astype(jnp.uint32)
                            mask = x < problem.width
                        if not softmax:
                            mask = both(mask, valid)
                        index = keys + (column - last) * problem.groups * problem.depth
                        k = load_depth(alu, problem, k_ref, index, mask, far=softmax)
                        v = flatten(channels.load_near(alu, v_ref, values, column - last, mask))
                        for i, dx in users:
                            logit, parts = similarity.logit(q[i], k, priors[dx])
                            d_logit = alu.dot(g[i], v, minus[i])
                            if softmax:
                                if fast:
                                    weight = alu.exp2(logit)
                                else:
                                    weight = alu.exp2((logit - shift[i]) * LOG2E) * factor[i]
                                inside = both(mask, fits[i])
                                if inside is not None and not (problem.far and fast):
                                    weight = jnp.where(inside, weight, 0.0)
                                d_logit = weight * d_logit
                            sums[i] = similarity.accumulate(sums[i], d_logit, parts)
                            d_priors[dx] = d_priors[dx] + d_logit
                    if problem.has_prior:
                        add_priors(number, chunk, row, d_priors)
                    return sums

                return loop(kh, add_row, sums)

            sums = loop(problem.chunks, add_chunk, [[zero] * problem.depth] * strip)
            for i in range(strip):
                index = query_index + at(i) * problem.groups * problem.depth
                parts = [similarity.finish(x) for x in sums[i]]
                store_depth(alu, problem, d_query_ref, index, parts, ok[i])

        if not softmax:
            gather([zero] * strip, fast=False, masked=True)
            return carry

        delta = loop(problem.chunks, dot_out, [zero] * strip)
        finding = jnp.zeros((tile.lanes,), jnp.int32)
        trust = Similarity(problem, alu, fast=True)
        for i in range(strip):
            factor = load_factor(i)
            odd = load_shift(i) != 0.0
            for distrusted in trust.distrusts(trust.centre(load_query(i))):
                odd |= distrusted
            wide = ~((factor >= SMALLEST_FACTOR) & (factor <= LARGEST_FACTOR))
            found = jnp.where(odd, SHIFTED, jnp.where(wide, WIDE_FACTOR, PLAIN))
            # Of lanes without work too: what they multiply by zero must be finite.
            fit = fits[i]
            finding = jnp.maximum(finding, found if fit is None else jnp.where(fit, found, PLAIN))
            store(alu, delta_ref, pixel_index + at(i) * problem.groups, delta[i], ok[i])
        worst = jnp.max(finding)
        flag_ref[program * tile.turns + number] = worst
        low, high = strip_range(problem, strip)
        free = strips.inside(first, tile.lanes, low, high)
        choose(worst == PLAIN, free if low <= high else None, functools.partial(gather, delta))
        return carry

    def add_priors(number: Any, chunk: Any, row: Any, d_priors: list[Vector]) -> None:
        """Adds a window row's sums to this lane's column."""
        index = base((row * kw + (kw - 1)) * per_turn + column_of_lane)
        mine = None if per_turn % tile.lanes == 0 else column_of_lane < per_turn
        for dx, total in enumerate(d_priors):
            where = index + (dx + 1 - kw) * per_turn
            if tile.turns * problem.chunks > 1:
                again = jnp.broadcast_to((number > 0) | (chunk > 0), where.shape)
                total = total + load(left[0], where, both(mine, again), 0.0)
            store(alu, left[0], where, total, mine)

    loop(tile.turns, turn, 0)


def key_side(
    problem: Problem,
    tile: Tile,
    interpret: bool,
    arrays: list[jax.Array],
    d_out: jax.Array,
    shift: jax.Array | None,
    factor: jax.Array | None,
    delta: jax.Array | None,
    flag: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """(d_key, d_value)."""
    strips = Strips(problem.height, problem.width, tile.strip, problem.groups, problem.batch)
    inputs = [*arrays, d_out]
    if problem.softmax:
        for x in (shift, factor, delta, flag):
            assert x is not None
            inputs.append(x)
    d_key, d_value = pl.pallas_call(
        functools.partial(_key_kernel, problem, tile, strips, Alu(inline=not interpret)),
        grid=(pl.cdiv(strips.lanes, tile.lanes),),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays[1:3]],
        compiler_params=plt.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name="local_relation_backward_key",
    )(*inputs)
    return d_key, d_value


def _key_kernel(problem: Problem, tile: Tile, strips: Strips, alu: Alu, *refs: Any) -> None:
    q_ref, k_ref, v_ref, *left = refs
    prior_refs, left = left[: problem.has_prior], left[problem.has_prior :]
    g_ref, *left = left
    if problem.softmax:
        shift_ref, factor_ref, delta_ref, flag_ref, *left = left
    d_key_ref, d_value_ref = left
    spec, strip, softmax = problem.spec, tile.strip, problem.softmax
    (kh, _), (pad_y, _), s = spec.kernel_size, spec.padding, spec.stride
    ho, wo = problem.out_size
    groups, depth = problem.groups, problem.depth

    first = pl.program_id(0) * tile.lanes
    lane = first + jnp.arange(tile.lanes, dtype=jnp.int32)
    live = None if strips.lanes % tile.lanes == 0 else lane < strips.lanes
    image, y, x0, group = strips.place(jnp.minimum(lane, strips.lanes - 1))
    last_pixel = (image * problem.height + y) * problem.width + x0 + (strip - 1)
    key_index = base((last_pixel * groups + group) * depth)
    fits = [None if problem.width % strip == 0 else x0 + i < problem.width for i in range(strip)]
    ok = [both(live, x) for x in fits]
    taps = _output_columns(problem, strip)
    last = max(taps)
    zero = jnp.zeros((tile.lanes,), jnp.float32)

    def at(i: int) -> int:
        return i + 1 - strip

    def window_row(number: Any) -> tuple[Vector, Vector, Vector]:
        """(index of the last output pixel, window row, whether there is such an output row)."""
        if s == 1:
            offset = number * spec.dilation
            yo = y + pad_y - offset
            row, valid = number, (yo >= 0) & (yo < ho)
        else:
            yo = (y + pad_y) // s - number
            offset = y + pad_y - yo * s
            valid = (yo >= 0) & (yo < ho) & (offset <= (kh - 1) * spec.dilation)
            if spec.dilation > 1:
                valid &= offset % spec.dilation == 0
            row = jnp.minimum(offset // spec.dilation, kh - 1)
        end = (image * ho + jnp.clip(yo, 0, ho - 1)) * wo + x0 // s + last
        return end, row, valid

    def gather(fast: bool, masked: bool) -> None:
        """Sums over the outputs that see this lane's keys. `fast`: all shifts are 0."""
        similarity = Similarity(problem, alu, fast, of_key=True)
        k = [
            similarity.centre(
                load_depth(alu, problem, k_ref, key_index + at(i) * groups * depth, fits[i])
            )
            for i in range(strip)
        ]

        def add_chunk(chunk: Any, d_keys: Any) -> Any:
            channels = Channels.of(problem, group, chunk)
            own = channels.bases(last_pixel)
            v = [flatten(channels.load(alu, v_ref, own, at(i), fits[i])) for i in range(strip)]

            def add_row(number: Any, sums: Any) -> Any:
                d_keys, d_values = [list(x) for x in sums[0]], list(sums[1])
                end, row, valid = window_row(number)
                pixels = base(end * groups + group)
                queries = base((end * groups + group) * depth)
                outputs = channels.bases(end)
                priors = load_priors(problem, fast, prior_refs, row, group, valid)
                for column, users in taps.items():
                    mask = None
                    if masked:  # one comparison: negative is large
                        mask = (x0 // s + column).astype(jnp.uint32) < wo
                    if not softmax:
                        mask = both(mask, valid)
                    back = column - last
                    index = queries + back * groups * depth
                    q = load_depth(alu, problem, q_ref, index, mask, far=softmax)
                    pieces = channels.load_near(alu, g_ref, outputs, back, mask)
                    g = flatten(pieces)  # channels that do not exist meet a value of 0
                    start = zero
                    if softmax:
                        index = pixels + back * groups
                        factor = load(factor_ref, index, mask, 0.0)
                        start = -load(delta_ref, index, mask, 0.0)
                        if problem.chunks > 1:  # delta counts once
                            start = jnp.where(chunk == 0, start, 0.0)
                        if not fast:
                            shift = load(shift_ref, index, mask, 0.0)
                    for i, dx in users:
                        weight, parts = similarity.logit(k[i], q, priors[dx])
                        d_logit = alu.dot(g, v[i], start)
                        if softmax:
                            if fast:
                                weight = alu.exp2(weight) * factor
                            else:
                                weight = alu.exp2((weight - shift) * LOG2E) * factor
                            if mask is not None and not (problem.far and fast):
                                weight = jnp.where(mask, weight, 0.0)
                            d_logit = weight * d_logit
                        d_keys[i] = similarity.accumulate(d_keys[i], d_logit, parts)
                        d_values[i] = [
                            alu.fma(weight[:, None], x, total)
                            for x, total in zip(pieces, d_values[i], strict=True)
                        ]
                return d_keys, d_values

            rows = kh if s == 1 else (kh - 1) * spec.dilation // s + 1
            d_keys, d_values = loop(rows, add_row, (d_keys, [channels.zeros()] * strip))
            for i in range(strip):
                channels.store(alu, d_value_ref, own, at(i), d_values[i], ok[i])
            return d_keys

        d_keys = loop(problem.chunks, add_chunk, [[zero] * depth] * strip)
        for i in range(strip):
            parts = [similarity.finish(x) for x in d_keys[i]]
            store_depth(alu, problem, d_key_ref, key_index + at(i) * groups * depth, parts, ok[i])

    if not softmax:
        gather(fast=False, masked=True)
        return
    low, high = key_strip_range(problem, strip)
    free = strips.inside(first, tile.lanes, low, high)
    choose(flag_ref[0] != SHIFTED, free if low <= high else None, gather)


def choose(fast: jax.Array, free: jax.Array | None, gather: Callable[..., None]) -> None:
    """Runs `gather` in the cheapest form that the program's pixels allow."""

    def quick() -> None:
        if free is None:
            gather(fast=True, masked=True)
        else:
            jax.lax.cond(
                free,
                lambda: gather(fast=True, masked=False),
                lambda: gather(fast=True, masked=True),
            )

    jax.lax.cond(fast, quick, lambda: gather(fast=False, masked=True))


def _output_columns(problem: Problem, strip: int) -> dict[int, list[tuple[int, int]]]:
    """Output column, counted from the strip's first -> the (key pixel, tap) pairs it looks at."""
    spec, pad = problem.spec, problem.spec.padding[1]
    taps: dict[int, list[tuple[int, int]]] = {}
    for i in range(strip):
        for dx in range(spec.kernel_size[1]):
            column, rest = divmod(i + pad - dx * spec.dilation, spec.stride)
            if rest == 0:
                taps.setdefault(column, []).append((i, dx))
    return dict(sorted(taps.items()))


def key_strip_range(problem: Problem, strip: int) -> tuple[int, int]:
    """Numbers of the first and last strip that only outputs inside the image look at."""
    columns = _output_columns(problem, strip)
    step = strip // problem.spec.stride
    high = min((problem.out_size[1] - 1 - max(columns)) // step, problem.width // strip - 1)
    return max(0, -(min(columns) // step)), high
