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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.gpu_lanes import (
    LOG2E,
    Alu,
    Channels,
    Problem,
    Similarity,
    Strips,
    Vector,
    base,
    both,
    load_depth,
    load_priors,
    loop,
    scaled_prior,
    store,
)
from pallas_kernels.spec import Spec
from pallas_kernels.tiling import Tile, forward_tile

Normalizer = tuple[jax.Array, jax.Array]

SMALLEST_SUM = 2.0**-40
LARGEST_SUM = 2.0**60


def forward(
    spec: Spec,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
    *,
    interpret: bool = False,
    tile: Tile | None = None,
) -> tuple[jax.Array, Normalizer | None]:
    """The output, and what the backward pass needs to compute the weights again.

    Args:
      spec: the static options.
      query: (B, Ho, Wo, G, D).
      key: (B, H, W, G, D).
      value: (B, H, W, C).
      prior: (G, Kh, Kw) or None.
      interpret: run the kernel in JAX's interpreter, on any platform, slowly.
      tile: None picks one, see tiling.py.

    Returns:
      out: (B, Ho, Wo, C) in value.dtype.
      normalizer: None without softmax, else two float32 (B, Ho, Wo, G) arrays (shift, factor) with
        weight = exp(logit - shift) * factor.
    """
    problem = Problem.of(spec, query, key, value, prior)
    tile = tile or forward_tile(problem)
    strips = Strips(*problem.out_size, tile.strip, problem.groups * problem.chunks, problem.batch)
    out = [jax.ShapeDtypeStruct((query[..., 0, 0].size * problem.channels,), value.dtype)]
    if problem.softmax:
        normalizer_size = query[..., 0].size
        out += [jax.ShapeDtypeStruct((normalizer_size,), jnp.float32)] * 2
    out, *normalizer = pl.pallas_call(
        functools.partial(_kernel, problem, tile, strips, Alu(inline=not interpret)),
        grid=(pl.cdiv(strips.lanes, tile.lanes),),
        out_shape=out,
        compiler_params=plt.CompilerParams(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name="local_relation_forward",
    )(
        query.reshape(-1),
        key.reshape(-1),
        value.reshape(-1),
        *scaled_prior(problem, prior),
    )
    out = out.reshape(*query.shape[:3], problem.channels)
    if not normalizer:
        return out, None
    shift, factor = (x.reshape(query.shape[:4]) for x in normalizer)
    return out, (shift, factor)


def _kernel(problem: Problem, tile: Tile, strips: Strips, alu: Alu, *refs: Any) -> None:
    q_ref, k_ref, v_ref, *refs_left = refs
    prior_refs, refs_left = refs_left[: problem.has_prior], refs_left[problem.has_prior :]
    out_ref, *normalizer_refs = refs_left
    spec, strip = problem.spec, tile.strip
    (kh, _), (pad_y, pad_x), s = spec.kernel_size, spec.padding, spec.stride
    ho, wo = problem.out_size

    first = pl.program_id(0) * tile.lanes
    lane = first + jnp.arange(tile.lanes, dtype=jnp.int32)
    live = None if strips.lanes % tile.lanes == 0 else lane < strips.lanes
    image, y, x0, unit = strips.place(jnp.minimum(lane, strips.lanes - 1))
    group, chunk = unit // problem.chunks, unit % problem.chunks
    channels = Channels.of(problem, group, chunk)
    last_pixel = (image * ho + y) * wo + x0 + (strip - 1)
    outputs = channels.bases(last_pixel)
    weights = base(last_pixel * problem.groups + group)
    taps = window_columns(problem, strip)
    last = max(taps)

    def pixels(masked: bool) -> list[Vector | None]:
        if not masked or wo % strip == 0:
            return [live] * strip
        return [both(live, x0 + i < wo) for i in range(strip)]

    def load_query(mask: list[Vector | None]) -> list[list[Vector]]:
        index = base((last_pixel * problem.groups + group) * problem.depth)
        step = problem.groups * problem.depth
        return [
            load_depth(alu, problem, q_ref, index + (i + 1 - strip) * step, mask[i])
            for i in range(strip)
        ]

    def window_row(row: Any) -> tuple[Vector, list[Vector], Vector]:
        """Indices of the strip's last key and value in a window row, and whether the row exists."""
        yi = y * s + row * spec.dilation - pad_y
        clamped = jnp.clip(yi, 0, problem.height - 1)
        end = (image * problem.height + clamped) * problem.width + x0 * s + (last - pad_x)
        keys = base((end * problem.groups + group) * problem.depth)
        return keys, channels.bases(end), (yi >= 0) & (yi < problem.height)

    def column_mask(column: int) -> Vector:
        x = (x0 * s + (column - pad_x)).astype(jnp.uint32)  # one comparison: negative is large
        return x < problem.width

    def load_key(keys: Vector, column: int, mask: Vector | None) -> list[Vector]:
        index = keys + (column - last) * problem.groups * problem.depth
        return load_depth(alu, problem, k_ref, index, mask, far=problem.softmax)

    def load_value(values: list[Vector], column: int, mask: Vector | None) -> list[jax.Array]:
        return channels.load_near(alu, v_ref, values, column - last, mask)

    def once(masked: bool) -> jax.Array:
        """One pass without a maximum. Returns whether it must be done again."""
        similarity = Similarity(problem, alu, fast=True)
        ok = pixels(masked)
        q = [similarity.centre(x) for x in load_query(ok)]
        # Weights beyond the image's top and bottom are 0 through a prior of -inf. That needs
        # exponentials, and finite values in the row that is read instead.
        mask_rows = not problem.softmax

        def body(row: Any, carry: Any) -> Any:
            total, acc = list(carry[0]), list(carry[1])
            keys, values, valid = window_row(row)
            priors = load_priors(problem, True, prior_refs, row, group, valid)
            for column, users in taps.items():
                mask = both(column_mask(column) if masked else None, valid if mask_rows else None)
                k = load_key(keys, column, mask)
                v = load_value(values, column, mask)
                for i, dx in users:
                    weight, _ = similarity.logit(q[i], k, priors[dx])
                    if problem.softmax:
                        weight = alu.exp2(weight)
                        if mask is not None and not problem.far:
                            weight = jnp.where(mask, weight, 0.0)
                        total[i] = total[i] + weight
                    acc[i] = [
                        alu.fma(weight[:, None], x, a) for x, a in zip(v, acc[i], strict=True)
                    ]
            return total, acc

        zero = jnp.zeros((tile.lanes,), jnp.float32)
        total, acc = loop(kh, body, ([zero] * strip, [channels.zeros()] * strip))
        if not problem.softmax:
            for i in range(strip):
                channels.store(alu, out_ref, outputs, i + 1 - strip, acc[i], ok[i])
            return jnp.int32(0)
        bad = jnp.zeros((tile.lanes,), bool)
        for i in range(strip):
            good = (total[i] >= SMALLEST_SUM) & (total[i] <= LARGEST_SUM)
            if problem.dtypes[2] != np.float16:  # 65504 * 2**60 is finite
                size = sum(jnp.sum(jnp.abs(a), axis=1) for a in acc[i])
                good &= size < jnp.inf
            for distrusted in similarity.distrusts(q[i]):
                good &= ~distrusted
            bad |= ~good if ok[i] is None else ~good & ok[i]
            finish(i, zero, total[i], acc[i], ok[i])
        return jnp.max(bad.astype(jnp.int32))

    def finish(
        i: int, shift: Vector, total: Vector, acc: list[jax.Array], ok: Vector | None
    ) -> None:
        factor = alu.reciprocal(total)
        channels.store(alu, out_ref, outputs, i + 1 - strip, [a * factor[:, None] for a in acc], ok)
        if problem.chunks > 1:
            ok = both(ok, chunk == 0)
        index = weights + (i + 1 - strip) * problem.groups
        store(alu, normalizer_refs[0], index, shift, ok)
        store(alu, normalizer_refs[1], index, factor, ok)

    def again() -> None:
        """A pass for the maximum, a pass for the weights; borders are masks in plain sight."""
        similarity = Similarity(problem, alu, fast=False)
        ok = pixels(masked=True)
        q = [similarity.centre(x) for x in load_query(ok)]

        def logits(row: Any) -> Any:
            keys, values, valid = window_row(row)
            priors = load_priors(problem, False, prior_refs, row, group, valid)
            for column, users in taps.items():
                mask = valid & column_mask(column)
                k = load_key(keys, column, mask)
                place = (values, column, mask)
                for i, dx in users:
                    logit, _ = similarity.logit(q[i], k, priors[dx])
                    yield place, i, jnp.where(mask, logit, -jnp.inf)

        def find(row: Any, largest: Any) -> Any:
            largest = list(largest)
            for _, i, logit in logits(row):
                largest[i] = jnp.maximum(largest[i], logit)
            return largest

        def add(row: Any, carry: Any) -> Any:
            total, acc = list(carry[0]), list(carry[1])
            here = None
            for place, i, logit in logits(row):
                if place is not here:
                    here, v = place, load_value(*place)
                weight = alu.exp2((logit - largest[i]) * LOG2E)
                total[i] = total[i] + weight
                acc[i] = [alu.fma(weight[:, None], x, a) for x, a in zip(v, acc[i], strict=True)]
            return total, acc

        lowest = jnp.full((tile.lanes,), -jnp.inf, jnp.float32)
        zero = jnp.zeros((tile.lanes,), jnp.float32)
        largest = loop(kh, find, [lowest] * strip)
        total, acc = loop(kh, add, ([zero] * strip, [channels.zeros()] * strip))
        for i in range(strip):
            finish(i, largest[i], total[i], acc[i], ok[i])

    low, high = strip_range(problem, strip)
    if problem.softmax and low <= high:
        free = strips.inside(first, tile.lanes, low, high)
        bad = jax.lax.cond(free, lambda: once(masked=False), lambda: once(masked=True))
    else:
        bad = once(masked=True)
    if problem.softmax:
        pl.when(bad > 0)(again)


def window_columns(problem: Problem, strip: int) -> dict[int, list[tuple[int, int]]]:
    """Column of keys, counted from the strip's first -> the (pixel, tap) pairs that look at it."""
    taps: dict[int, list[tuple[int, int]]] = {}
    for i in range(strip):
        for dx in range(problem.spec.kernel_size[1]):
            column = i * problem.spec.stride + dx * problem.spec.dilation
            taps.setdefault(column, []).append((i, dx))
    return dict(sorted(taps.items()))


def strip_range(problem: Problem, strip: int) -> tuple[int, int]:
    """Numbers of the first and last strip whose windows stay between the left and right border."""
    pad, s = problem.spec.padding[1], problem.spec.stride
    last = min(problem.out_size[1] - 1, (problem.width - 1 - pad) // s)
    return -(-pad // (strip * s)), (last - strip + 1) // strip
