"""The forward kernel: Eqns. 1 and 2, with windows, logits and weights in registers only.

A lane owns one group of a strip of R neighbouring output pixels. It keeps their queries, their
sums of weights and their sums of weighted values in registers. It visits the rows of the windows,
and in a row one column of keys after the other. Each key and value that it loads serves all pixels
of the strip whose windows contain it.

A single pass without a maximum comes first: the weight of a tap is 2**logit. It is exact as long
as no weight that matters leaves the range of float32. So the program checks its sums, and computes
the strips again with a pass for the maximum if one of them is outside [2**-40, 2**60].
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pallas_kernels.jax_triton.kernels.channels import add_weighted
from pallas_kernels.jax_triton.kernels.memory import address_of, load_floats
from pallas_kernels.jax_triton.kernels.pixels import (
    live_lanes,
    load_strip,
    pixel_number,
    store_channels,
    store_numbers,
)
from pallas_kernels.jax_triton.kernels.places import (
    lane_places,
    load_channels,
    value_addresses,
    window_priors,
    window_rows,
)
from pallas_kernels.jax_triton.kernels.taps import (
    exp2,
    imprecise,
    logit,
    prepared,
    reciprocal,
    replaced,
    scaled,
)
from pallas_kernels.jax_triton.kernels.windows import column, key_row, masked

MIN_SUM = tl.constexpr(2.0**-40)
MAX_SUM = tl.constexpr(2.0**60)
LOG2E = tl.constexpr(1.4426950408889634)


class Arrays(NamedTuple):
    """The arguments of `forward`, pointers to the first elements."""

    query: Any
    key: Any
    value: Any
    prior: Any
    out: Any
    shift: Any
    factor: Any


@triton.jit
def forward(query, key, value, prior, out, shift, factor, P: tl.constexpr):
    """The kernel with a softmax. Grid: `Plan.grid`.

    Args:
      query: (B, Ho, Wo, G, D).
      key: (B, H, W, G, D).
      value: (B, H, W, C).
      prior: the table of `launch.prior_table`, or anything without a prior.
      out: (B, Ho, Wo, C), written.
      shift: (B, Ho, Wo, G) float32, written.
      factor: (B, Ho, Wo, G) float32, written.
      P: the plan.
    """
    arrays = Arrays(query, key, value, prior, out, shift, factor)
    first = tl.program_id(0) * P.lanes
    place = lane_places(first, tl.program_id(2), P)
    rows = window_rows(first, P)
    failed = of_case(arrays, place, rows, 0, P)
    if failed > 0:
        exact_pass(arrays, place, rows, P)


@triton.jit
def forward_unnormalized(query, key, value, prior, out, P: tl.constexpr):
    """The kernel without softmax; the arguments of `forward`."""
    arrays = Arrays(query, key, value, prior, out, out, out)
    first = tl.program_id(0) * P.lanes
    of_case(arrays, lane_places(first, tl.program_id(2), P), window_rows(first, P), 0, P)


@triton.jit
def of_case(arrays, place, rows, NUMBER: tl.constexpr, P: tl.constexpr):
    """Runs the code for the border case of the program's strips, from case NUMBER on."""
    strip = tl.program_id(1)
    case: tl.constexpr = P.case(NUMBER)
    if NUMBER == P.case_count - 1:
        failed = single_pass(arrays, place, rows, strip * P.strip, case, P)
    else:
        if (strip >= case.first) & (strip <= case.last):
            failed = single_pass(arrays, place, rows, strip * P.strip, case, P)
        else:
            failed = of_case(arrays, place, rows, NUMBER + 1, P)
    return failed


@triton.jit
def single_pass(arrays, place, rows, x0, CASE: tl.constexpr, P: tl.constexpr):
    """Computes a strip without a maximum; 1 if a result is not accurate, else 0."""
    MASKED: tl.constexpr = CASE.masked
    low: tl.constexpr = CASE.low
    high: tl.constexpr = CASE.high
    R: tl.constexpr = P.strip
    M: tl.constexpr = P.m
    queries = load_strip(arrays.query, place, x0, 0, MASKED, P, True)
    zero = tl.zeros((P.lanes,), tl.float32)
    totals, sums = (zero,) * R, ((zero,) * M,) * R
    left = x0 * P.stride - P.left
    for dy in range(rows[0], rows[1]):  # rows of the windows
        line, valid = key_row(place, dy, P)
        priors = window_priors(arrays.prior, dy, valid, place.group, P, True)
        for c in tl.static_range(low, high):  # columns of keys
            k, v, exists, _ = column(
                arrays.key, arrays.value, line, left, c, P.width, place.group, valid, 1, MASKED, P
            )
            for i in tl.static_range(R):  # pixels of the strip
                if P.tap(c, i) >= 0:  # whose window has the key
                    weight, _ = logit(queries[i], k, priors[P.tap(c, i)], P, True)
                    if P.softmax:
                        weight = exp2(weight)
                    weight = masked(weight, exists, MASKED, P)
                    totals = replaced(totals, i, totals[i] + weight)
                    sums = replaced(sums, i, add_weighted(weight, v, sums[i], P))
    return store_checked(arrays, place, x0, queries, totals, sums, MASKED, P)


@triton.jit
def store_checked(arrays, place, x0, queries, totals, sums, MASKED: tl.constexpr, P: tl.constexpr):
    """Divides and stores a strip, accurate or not; 1 if a result is not, else 0."""
    R: tl.constexpr = P.strip
    M: tl.constexpr = P.m
    failed = tl.zeros((P.lanes,), tl.int32)
    for i in tl.static_range(R):
        live = live_lanes(place, x0, i, MASKED, P)
        if P.softmax:
            good = (totals[i] >= MIN_SUM) & (totals[i] <= MAX_SUM)
            if P.dtypes[2] != "fp16":  # 65504 * 2**60 is finite
                magnitude = tl.abs(sums[i][0])
                for j in tl.static_range(1, M):
                    magnitude += tl.abs(sums[i][j])
                good &= magnitude < float("inf")
            good &= imprecise(queries[i], P) == 0
            failed |= (live & (good == 0)).to(tl.int32)
        shift = tl.zeros_like(totals[i])
        store_pixel(arrays, place, x0, i, shift, totals[i], sums[i], live, MASKED, P)
    return tl.max(failed, 0)


@triton.jit
def store_pixel(
    arrays, place, x0, i: tl.constexpr, shift, total, sums, live, MASKED: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Divides by the sum of weights, and stores the results of pixel i."""
    out = sums
    if P.softmax:
        factor = reciprocal(total)
        out = scaled(sums, factor)
        store_numbers(arrays.shift, place, x0, i, (shift,), live, MASKED, P)
        store_numbers(arrays.factor, place, x0, i, (factor,), live, MASKED, P)
    store_channels(arrays.out, place, x0, i, out, live, MASKED, P)


@triton.jit
def exact_pass(arrays, place, rows, P: tl.constexpr):
    """Computes the strips again, pixel by pixel: a pass for the maximum, and one for the weights.

    It runs rarely, so it is written to be small and not fast.
    """
    M: tl.constexpr = P.m
    group = place.group
    zero = tl.zeros((P.lanes,), tl.float32)
    for i in range(P.strip):
        x0 = tl.program_id(1) * P.strip + i
        address = address_of(
            arrays.query, (pixel_number(place, x0, 0, True, P) * P.groups + group) * P.depth
        )
        q = prepared(load_floats(address, 0, P.depth, P.vector(0), P.dtypes[0]), P, False)
        shift, total, sums = zero - float("inf"), zero, (zero,) * M
        for step in range(2 * P.kh):  # twice over the window
            dy = step % P.kh
            y = place.row * P.stride + dy - P.top
            for dx in range(P.kw):
                x = x0 * P.stride + dx - P.left
                exists = (y >= 0) & (y < P.height) & (x >= 0) & (x < P.width)
                there = (
                    place.image * P.height + tl.minimum(tl.maximum(y, 0), P.height - 1)
                ) * P.width
                there += tl.minimum(tl.maximum(x, 0), P.width - 1)
                k_address = address_of(arrays.key, (there * P.groups + group) * P.depth)
                k = load_floats(k_address, 0, P.depth, P.vector(1), P.dtypes[1])
                of_tap = zero
                if P.has_prior:
                    number = ((P.kh + 1 + dy) * P.groups + group) * P.prior_row + dx
                    of_tap = load_floats(address_of(arrays.prior, number), 0, 1, 1, "fp32")[0]
                found, _ = logit(q, k, of_tap, P, False)
                found = tl.where(exists, found, float("-inf"))
                if step < P.kh:
                    shift = tl.maximum(shift, found)
                else:
                    weight = exp2((found - shift) * LOG2E)
                    v = load_channels(value_addresses(arrays.value, there, group, P), 0, P)
                    total += weight
                    sums = add_weighted(weight, v, sums, P)
        live = live_lanes(place, x0, 0, True, P)
        store_pixel(arrays, place, x0, 0, shift, total, sums, live, True, P)
