"""Forward pass on an NVIDIA GPU: one Pallas kernel; windows, logits and weights stay in registers.

A lane first takes the softmax at its word: weights 2**logit without a maximum, one pass, twelve
arithmetic instructions per tap at M = 8. That is exact as long as no weight that matters leaves the
range of float32, so every program checks its sums afterwards and, if one lies outside
[2**-40, 2**60] or an output is not finite, does its strips again the classic way: a pass for the
maximum, a pass for the weights. What the check lets through is as accurate as the classic way: a
weight lost to underflow is below 2**-80 of its sum. (A product weight * value below 2**-149 is lost
too, so outputs carry an absolute error of up to 1e-31.)

The normaliser is a pair with weight = exp(logit - shift) * factor. The log of the sum alone would
not do: next to a logit of 1e6 its last bit in float32 is worth 6 % of a weight.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.pallas.arithmetic import Alu
from pallas_kernels.pallas.lanes import (
    Channels,
    Layout,
    both,
    load_priors,
    loop,
    result,
    scaled_prior,
    store,
)
from pallas_kernels.pallas.output_strip import (
    OutputStrip,
    Row,
    output_strips,
    window_rows,
)
from pallas_kernels.pallas.problem import LOG2E, Problem, Similarity, Vector
from pallas_kernels.pallas.strips import Form, Strips, by_form
from pallas_kernels.pallas.tiling import Tile, forward_tile
from pallas_kernels.spec import Inputs, Normalizer, Spec

SMALLEST_SUM = 2.0**-40
LARGEST_SUM = 2.0**60


def forward(
    spec: Spec,
    inputs: Inputs,
    *,
    interpret: bool = False,
    tile: Tile | None = None,
) -> tuple[jax.Array, Normalizer | None]:
    """The output, and what the backward pass needs to compute the weights again.

    Args:
      spec: the static options.
      inputs: the arrays.
      interpret: run the kernel in JAX's interpreter, on any platform, slowly.
      tile: None picks one, see tiling.py.

    Returns:
      out: (B, Ho, Wo, C) in value.dtype.
      normalizer: None without softmax, else float32.
    """
    query, key, value, prior = inputs
    problem = Problem.of(spec, inputs)
    tile = tile or forward_tile(problem)
    strips, forms = output_strips(problem, tile, problem.groups * problem.chunks)
    layout = Layout.channels(problem)
    pixels = query[..., 0, 0].size
    out_shape = [layout.result(query, pixels * problem.channels)]
    if problem.softmax:
        out_shape += [result(query, pixels * problem.groups, jnp.float32)] * 2
    out, *normalizer = pl.pallas_call(
        functools.partial(_kernel, problem, strips, forms, Alu(inline=not interpret)),
        grid=strips.grid,
        out_shape=out_shape,
        compiler_params=plt.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name="local_relation_forward",
    )(
        Layout.depth(problem, 0).to_memory(query),
        Layout.depth(problem, 1).to_memory(key),
        layout.to_memory(value),
        *scaled_prior(problem, prior),
    )
    out = layout.from_memory(out, (*query.shape[:3], problem.channels))
    if not normalizer:
        return out, None
    shift, factor = (x.reshape(query.shape[:4]) for x in normalizer)
    return out, Normalizer(shift, factor)


def _kernel(problem: Problem, strips: Strips, forms: Sequence[Form], alu: Alu, *refs: Any) -> None:
    q_ref, k_ref, v_ref, *refs_left = refs
    prior_refs, refs_left = refs_left[: problem.has_prior], refs_left[problem.has_prior :]
    out_ref, *normalizer_refs = refs_left

    first, number = pl.program_id(0) * strips.per_program, pl.program_id(1)
    place = strips.place(first, number, pl.program_id(2))
    group, chunk = place.unit // problem.chunks, place.unit % problem.chunks
    channels = Channels.of(problem, group, chunk)
    zero = jnp.zeros((strips.per_program,), jnp.float32)
    ragged = problem.out_size[1] % strips.strip > 0
    whole = OutputStrip(problem, alu, place._replace(unit=group), strips.strip, ragged)
    start, end = window_rows(problem, strips, first)

    def finish(strip: OutputStrip, i: int, shift: Vector, total: Vector, acc: list[Vector]) -> None:
        def divide(ops: Any, total: Any, acc: Any) -> Any:
            factor = ops.reciprocal(total)
            return factor, [a * factor for a in acc]

        factor, out = alu.fuse(divide, total, acc)
        outputs = channels.bases(strip.last_pixel)
        channels.store(alu, out_ref, outputs, strip.back(i), out, strip.ok[i])
        ok = strip.ok[i]
        if problem.chunks > 1:
            ok = chunk == 0 if ok is None else ok & (chunk == 0)
        store(alu, normalizer_refs[0], strip.place(i), shift, ok)
        store(alu, normalizer_refs[1], strip.place(i), factor, ok)

    def once(form: Form) -> jax.Array | None:
        """One pass without a maximum. Returns whether it must be done again."""
        similarity = Similarity(problem, fast=True)
        strip = whole.of_form(form)
        q = [similarity.centre(strip.load_query(q_ref, i)) for i in range(strip.count)]
        # Weights beyond the image's top and bottom are 0 through a prior of -inf. That needs
        # exponentials, and finite values in the row that is read instead.
        mask_rows = not problem.softmax

        def tap(ops: Any, k: Any, v: Any, q: Any, prior: Any, total: Any, acc: Any) -> Any:
            weight, _ = similarity.logit(ops, q, k, prior)
            if problem.softmax:
                weight = ops.exp2(weight)
                total = [total[0] + weight]
            return total, [ops.fma(weight, x, a) for x, a in zip(v, acc, strict=True)]

        def body(number: Any, carry: Any) -> Any:
            total, acc = list(carry[0]), list(carry[1])
            row = strip.row(number, channels)
            priors = load_priors(problem, True, prior_refs, number, group, row.valid)
            for column, users in strip.taps.items():
                mask = strip.column_mask(column)
                if mask_rows:
                    mask = both(mask, row.valid)
                k = strip.load_key(k_ref, row, column, mask)
                v = strip.load_value(channels, v_ref, row, column, mask)
                pixels = [
                    (q[i], strip.masked_prior(priors[dx], i, mask), total[i], acc[i])
                    for i, dx in users
                ]
                for (i, _), sums in zip(users, alu.fuse_each(tap, (k, v), pixels), strict=True):
                    total[i], acc[i] = sums
            return total, acc

        # Without softmax there is no sum of weights.
        sums: list[list[Vector]] = [[zero] if problem.softmax else []] * strip.count
        total, acc = loop(end, body, (sums, [[zero] * problem.chunk] * strip.count), start)
        strip = strip.anew()
        if not problem.softmax:
            outputs = channels.bases(strip.last_pixel)
            for i in range(strip.count):
                channels.store(alu, out_ref, outputs, strip.back(i), acc[i], strip.ok[i])
            return None

        def magnitude(ops: Any, acc: Any) -> Any:
            total = ops.absolute(acc[0])
            for a in acc[1:]:
                total = total + ops.absolute(a)
            return total

        bad = jnp.zeros_like(zero, bool)
        for i in range(strip.count):
            [sum_i], ok = total[i], strip.ok[i]
            good = (sum_i >= SMALLEST_SUM) & (sum_i <= LARGEST_SUM)
            if problem.dtypes[2] != np.float16:  # 65504 * 2**60 is finite
                good &= alu.fuse(magnitude, acc[i]) < jnp.inf
            for distrusted in similarity.distrusts(q[i]):
                good &= ~distrusted
            bad |= ~good if ok is None else ~good & ok
            finish(strip, i, zero, sum_i, acc[i])
        return jnp.max(bad.astype(jnp.int32))

    def again() -> None:
        """A pass for the maximum and one for the weights, pixel by pixel: rare, so kept small."""
        similarity = Similarity(problem, fast=False)

        def one(number: Any, carry: Any) -> Any:
            strip = whole.pixel(number)
            q = similarity.centre(strip.load_query(q_ref, 0))

            def logits(row: Row, number: Any) -> Any:
                priors = load_priors(problem, False, prior_refs, number, group, row.valid)
                for column, [(_, dx)] in strip.taps.items():
                    mask = both(row.valid, strip.column_mask(column))
                    assert mask is not None
                    k = strip.load_key(k_ref, row, column, mask)
                    logit = alu.fuse(lambda *x: similarity.logit(*x)[0], q, k, priors[dx])
                    yield column, mask, jnp.where(mask, logit, -jnp.inf)

            def find(number: Any, largest: Any) -> Any:
                for _, _, logit in logits(strip.row(number, channels), number):
                    largest = jnp.maximum(largest, logit)
                return largest

            lowest = jnp.full_like(zero, -jnp.inf)
            largest = loop(end, find, lowest, start)

            def tap(ops: Any, logit: Any, largest: Any, v: Any, total: Any, acc: Any) -> Any:
                weight = ops.exp2((logit - largest) * LOG2E)
                return total + weight, [ops.fma(weight, x, a) for x, a in zip(v, acc, strict=True)]

            def add(number: Any, carry: Any) -> Any:
                total, acc = carry
                row = strip.row(number, channels)
                for column, mask, logit in logits(row, number):
                    v = strip.load_value(channels, v_ref, row, column, mask)
                    total, acc = alu.fuse(tap, logit, largest, v, total, acc)
                return total, acc

            total, acc = loop(end, add, (zero, [zero] * problem.chunk), start)
            finish(strip, 0, largest, total, acc)
            return carry

        loop(whole.count, one, 0)

    bad = by_form(forms, number, once)
    if problem.softmax:
        pl.when(bad > 0)(again)
