"""The kernel for d_key and d_value; `backward_pass` has the equations. A lane owns input pixels."""

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
    Channels,
    Layout,
    Scalar,
    base,
    both,
    depth_base,
    load,
    load_depth,
    load_priors,
    loop,
    span,
    split,
    store_depth,
)
from pallas_kernels.pallas.problem import LOG2E, Problem, Similarity, Vector
from pallas_kernels.pallas.query_kernel import SHIFTED, Sums
from pallas_kernels.pallas.strips import Form, Strips, by_form
from pallas_kernels.pallas.tiling import Tile


def key_side(
    problem: Problem,
    tile: Tile,
    interpret: bool,
    arrays: list[jax.Array],
    d_out: jax.Array,
    shift: jax.Array | None,
    sums: Sums | None,
) -> tuple[jax.Array, jax.Array]:
    """(d_key, d_value) as in memory."""
    strips, forms = key_strips(problem, tile)
    inputs = [*arrays, d_out]
    if sums is not None:
        assert shift is not None
        inputs += [shift.reshape(-1), sums.pairs, sums.findings]
    places = problem.batch * problem.height * problem.width
    d_key, d_value = pl.pallas_call(
        functools.partial(_key_kernel, problem, strips, forms, Alu(inline=not interpret)),
        grid=strips.grid,
        out_shape=[
            Layout.depth(problem, 1).result(d_out, places * problem.groups * problem.depth),
            Layout.channels(problem).result(d_out, places * problem.channels),
        ],
        compiler_params=plt.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name="local_relation_backward_key",
    )(*inputs)
    return d_key, d_value


def _key_kernel(
    problem: Problem, strips: Strips, forms: Sequence[Form], alu: Alu, *refs: Any
) -> None:
    q_ref, k_ref, v_ref, *left = refs
    prior_refs, left = left[: problem.has_prior], left[problem.has_prior :]
    g_ref, *left = left
    if problem.softmax:
        shift_ref, pairs_ref, findings_ref, *left = left
    d_key_ref, d_value_ref = left
    spec, softmax = problem.spec, problem.softmax
    (kh, _), (pad_y, _), s = spec.kernel_size, spec.padding, spec.stride
    ho, wo = problem.out_size
    groups = problem.groups

    first, strip_number = pl.program_id(0) * strips.per_program, pl.program_id(1)
    image, y, first_x, group, live = strips.place(first, strip_number, pl.program_id(2))
    zero = jnp.zeros((strips.per_program,), jnp.float32)
    key_layout, query_layout = Layout.depth(problem, 1), Layout.depth(problem, 0)

    def window_row(number: Any, x0: Vector, last: int) -> tuple[Vector, Vector, Vector]:
        """(number of the last output pixel, window row, whether there is such an output row)."""
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
            if not softmax:
                valid &= row < kh
            row = jnp.minimum(row, kh)  # the row after the last one is that of no weight
        return (image * ho + jnp.clip(yo, 0, ho - 1)) * wo + x0 // s + last, row, valid

    start_turn, end_turn = turns(problem, strips, first)

    def gather(strip: int, x0: Vector, fast: bool, form: Form | None) -> None:
        """Sums over the outputs that see these keys.

        Args:
          strip: keys side by side, a multiple of the stride.
          x0: column of the first one.
          fast: all shifts are 0.
          form: of the strip; None: for all lanes, any output may lie beyond the border.
        """
        similarity = Similarity(problem, fast, of_key=True)
        taps, masked = output_columns(problem, strip), form is None or form.columns is None
        if form:
            taps, x0 = form.existing(taps), form.first_column(x0, strip)
        last = max(taps, default=0)

        def last_pixel(image: Vector) -> Vector:
            return (image * problem.height + y) * problem.width + x0 + (strip - 1)

        keys = depth_base(problem, key_layout, last_pixel(image) * groups + group)
        ragged = masked and problem.width % strips.strip > 0
        fits = [x0 + i < problem.width if ragged else None for i in range(strip)]
        ok = [both(live, x) for x in fits]
        back = [i + 1 - strip for i in range(strip)]
        k = [
            similarity.centre(
                load_depth(alu, problem, key_layout, k_ref, keys, back[i] * groups, fits[i])
            )
            for i in range(strip)
        ]

        def tap(
            ops: Any, q: Any, g: Any, start: Any, normalizer: Any, k: Any, prior: Any, v: Any,
            d_key: Any, d_value: Any,
        ) -> Any:  # fmt: skip
            weight, parts = similarity.logit(ops, k, q, prior)
            d_logit = dot(ops, g, v, start)
            if softmax:
                *shift, factor = normalizer
                if shift:
                    weight = (weight - shift[0]) * LOG2E
                weight = ops.exp2(weight) * factor
                d_logit = weight * d_logit
            d_value = [ops.fma(weight, x, total) for x, total in zip(g, d_value, strict=True)]
            return similarity.accumulate(ops, d_key, d_logit, parts), d_value

        def add_chunk(chunk: Any, d_keys: Any) -> Any:
            channels = Channels.of(problem, group, chunk)
            own = channels.bases(last_pixel(image))
            v = [channels.load(alu, v_ref, own, back[i], fits[i]) for i in range(strip)]

            def add_row(number: Any, sums: Any) -> Any:
                d_keys, d_values = list(sums[0]), list(sums[1])
                end, row, valid = window_row(number, x0, last)
                queries = depth_base(problem, query_layout, end * groups + group)
                outputs = channels.bases(end)
                if softmax:
                    pixels = base(2 * (end * groups + group), 2)
                    shifts = base(end * groups + group)
                priors = load_priors(problem, fast, prior_refs, row, group, valid)
                for column, users in taps.items():
                    mask = None
                    if masked:  # one comparison: negative is large
                        mask = (x0 // s + column).astype(jnp.uint32) < wo
                    if not softmax:
                        mask = both(mask, valid)
                    places = (column - last) * groups
                    q = load_depth(alu, problem, query_layout, q_ref, queries, places, mask, far=1)
                    # Channels that do not exist meet a value of 0.
                    g = channels.load(alu, g_ref, outputs, column - last, mask, exact=False)
                    start, normalizer = zero, []
                    if softmax:
                        pair = load(pairs_ref, span(pixels, 2 * places, 2), mask, 0.0)
                        factor, start = split(pair)
                        if problem.chunks > 1:  # delta counts once
                            start = jnp.where(chunk == 0, start, 0.0)
                        normalizer = [factor]
                        if not fast:
                            normalizer = [load(shift_ref, shifts + places, mask, 0.0), factor]
                    seen = []
                    for i, dx in users:
                        prior = priors[dx]
                        if softmax and mask is not None and not problem.far:
                            prior = jnp.where(mask, prior, -jnp.inf)
                        seen.append((k[i], prior, v[i], d_keys[i], d_values[i]))
                    new = alu.fuse_each(tap, (q, g, start, normalizer), seen)
                    for (i, _), (of_key, of_value) in zip(users, new, strict=True):
                        d_keys[i], d_values[i] = of_key, of_value
                return d_keys, d_values

            zeros = [[zero] * problem.chunk] * strip
            d_keys, d_values = loop(end_turn, add_row, (d_keys, zeros), start_turn)
            own = channels.bases(last_pixel(opaque(image)))  # as in `OutputStrip.anew`
            for i in range(strip):
                channels.store(alu, d_value_ref, own, back[i], d_values[i], ok[i])
            return d_keys

        d_keys = loop(problem.chunks, add_chunk, [[zero] * problem.depth] * strip)
        keys = depth_base(problem, key_layout, last_pixel(opaque(image)) * groups + group)
        for i in range(strip):
            parts = [similarity.finish(x) for x in d_keys[i]]
            store_depth(alu, key_layout, d_key_ref, keys, back[i] * groups, parts, ok[i])

    def gather_all(fast: bool) -> None:
        by_form(forms, strip_number, functools.partial(gather, strips.strip, first_x, fast))

    if not softmax:
        gather_all(fast=False)
        return

    def exact() -> None:
        """As few keys at a time as the stride allows: rare, so kept small."""

        def some(number: Any, carry: Any) -> Any:
            gather(s, first_x + number * s, fast=False, form=None)
            return carry

        loop(strips.strip // s, some, 0)

    plain = jnp.max(load(findings_ref, image * problem.height + y)) != SHIFTED
    lax.cond(plain, lambda: gather_all(fast=True), exact)


def turns(problem: Problem, strips: Strips, first: Scalar) -> tuple[Any, Any]:
    """From and to (exclusive) which turn of the loop over window rows a program's lanes need."""
    spec, rows, s = problem.spec, problem.out_size[0], jnp.int32(problem.spec.stride)
    low, high, alike = strips.row_range(first)
    low, high = low + spec.padding[0], high + spec.padding[0]
    kh, dilation = spec.kernel_size[0], jnp.int32(spec.dilation)
    if spec.stride == 1:
        below = jnp.maximum(low - (rows - 1), 0) + (spec.dilation - 1)
        return lax.div(below, dilation), jnp.minimum(lax.div(high, dilation) + 1, kh)
    # Lanes of one phase lie side by side, so most programs hold one phase.
    offset = jnp.where(alike & (strips.phases > 1), lax.rem(low, s), 0)
    end = jnp.minimum(lax.div(high, s), lax.div((kh - 1) * dilation - offset, s)) + 1
    return jnp.maximum(lax.div(low, s) - (rows - 1), 0), end


def key_strips(problem: Problem, tile: Tile) -> tuple[Strips, list[Form]]:
    """How programs cover the keys, and the forms of code for that."""
    s, height, width = problem.spec.stride, problem.height, problem.width
    phases = s if height % s == 0 else 1
    groups, batch, lanes = problem.groups, problem.batch, tile.lanes
    strips = Strips(height, width, tile.strip, groups, batch, lanes, phases)
    columns = output_columns(problem, tile.strip)
    return strips, strips.forms(tile.strip // s, 0, columns, problem.out_size[1])


def output_columns(problem: Problem, strip: int) -> dict[int, list[tuple[int, int]]]:
    """Output column, counted from the strip's first -> the (key pixel, tap) pairs it looks at."""
    spec, pad = problem.spec, problem.spec.padding[1]
    taps: dict[int, list[tuple[int, int]]] = {}
    for i in range(strip):
        for dx in range(spec.kernel_size[1]):
            column, rest = divmod(i + pad - dx * spec.dilation, spec.stride)
            if rest == 0:
                taps.setdefault(column, []).append((i, dx))
    return dict(sorted(taps.items()))
