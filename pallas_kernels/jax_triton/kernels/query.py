"""The kernel for d_query and d_prior. It gathers, as the forward kernel does, and uses no atomics.

With w the weight, g the gradient of the output and delta = g . out (over a group's channels):

    d_logit = w * (g . value - delta)                     (without softmax: g . value)
    d_query = sum over taps    d_logit * dPhi/dquery
    d_prior = sum over pixels  d_logit

Weights are computed again, w = exp(logit - shift) * factor. Where the forward kernel needed no
maximum, the shift is 0 and drops out, and the factor is multiplied into g once per pixel instead
of once per tap. A program checks whether this holds for all its pixels. Otherwise it takes the
exact path, pixel by pixel. It stores the severity of each lane for the key kernel.

A lane adds its part of d_prior to a column of memory of its own, over several rounds of images.
XLA adds up the columns.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pallas_kernels.jax_triton.kernels.channels import dot
from pallas_kernels.jax_triton.kernels.memory import (
    address_of,
    load_words,
    store_floats,
    store_words,
)
from pallas_kernels.jax_triton.kernels.pixels import (
    live_lanes,
    load_number,
    load_strip,
    load_strip_channels,
    store_components,
    store_numbers,
)
from pallas_kernels.jax_triton.kernels.places import lane_places, window_priors, window_rows
from pallas_kernels.jax_triton.kernels.taps import (
    accumulate,
    exp2,
    imprecise,
    logit,
    replaced,
    scaled,
)
from pallas_kernels.jax_triton.kernels.windows import column, key_row, masked

# A factor in this range may be multiplied into g: products g * value up to 3e32 do not overflow.
MIN_FACTOR = tl.constexpr(2.0**-20)
MAX_FACTOR = tl.constexpr(2.0**20)
LOG2E = tl.constexpr(1.4426950408889634)

# The severity of a lane.
PLAIN = tl.constexpr(0)  # all shifts are 0 and all factors are moderate: the fast paths
WIDE_FACTOR = tl.constexpr(1)  # a factor is not moderate: the exact path here
SHIFTED = tl.constexpr(2)  # a shift is not 0, or a fast logit is imprecise: both exact paths


class Arrays(NamedTuple):
    """The arguments of `query_gradients`, pointers to the first elements."""

    query: Any
    key: Any
    value: Any
    prior: Any
    out: Any
    d_out: Any
    shift: Any
    factor: Any
    d_query: Any
    pairs: Any
    severity: Any
    d_prior: Any


@triton.jit
def query_gradients(
    query, key, value, prior, out, d_out, shift, factor, d_query, pairs, severity, d_prior,
    P: tl.constexpr,
):  # fmt: skip
    """The kernel with a softmax and a prior. Grid: `Plan.grid`.

    Args:
      query: (B, Ho, Wo, G, D).
      key: (B, H, W, G, D).
      value: (B, H, W, C).
      prior: the table of `launch.prior_table`.
      out: (B, Ho, Wo, C).
      d_out: (B, Ho, Wo, C), the gradient of the output.
      shift: (B, Ho, Wo, G) float32, like `factor` from the forward kernel.
      factor: (B, Ho, Wo, G) float32.
      d_query: (B, Ho, Wo, G, D), written.
      pairs: (B, Ho, Wo, G, 2) float32, written: factor and -delta, for the key kernel.
      severity: (B, strips, Ho, G) int32, written.
      d_prior: (Kh, columns, Kw padded) float32, written; see `Plan.prior_columns`.
      P: the plan.
    """
    arrays = Arrays(
        query, key, value, prior, out, d_out, shift, factor, d_query, pairs, severity, d_prior
    )
    all_rounds(arrays, P)


@triton.jit
def query_gradients_without_prior(
    query, key, value, prior, out, d_out, shift, factor, d_query, pairs, severity,
    P: tl.constexpr,
):  # fmt: skip
    """The kernel with a softmax and no prior; the arguments of `query_gradients`."""
    arrays = Arrays(
        query, key, value, prior, out, d_out, shift, factor, d_query, pairs, severity, d_query
    )
    all_rounds(arrays, P)


@triton.jit
def unnormalized_query_gradients(
    query, key, value, prior, d_out, d_query, d_prior, P: tl.constexpr
):
    """The kernel without softmax; the arguments of `query_gradients`."""
    g, d_q = d_out, d_query  # also in the place of what there is not
    all_rounds(Arrays(query, key, value, prior, g, g, g, g, d_q, d_q, d_q, d_prior), P)


@triton.jit
def unnormalized_query_gradients_without_prior(
    query, key, value, prior, d_out, d_query, P: tl.constexpr
):
    """The kernel without softmax and prior; the arguments of `query_gradients`."""
    g, d_q = d_out, d_query
    all_rounds(Arrays(query, key, value, prior, g, g, g, g, d_q, d_q, d_q, d_q), P)


@triton.jit
def all_rounds(arrays, P: tl.constexpr):
    """Computes the strips of several rounds of images, one after the other."""
    first = tl.program_id(0) * P.lanes
    rows = window_rows(first, P)
    lane = first + tl.arange(0, P.lanes)
    column_of_lane = (tl.program_id(2) * P.strips + tl.program_id(1)) * P.round_lanes + lane
    if P.has_prior:
        clear(arrays.d_prior, column_of_lane, lane, P)
    start = tl.program_id(2) * P.repeats
    for images in range(start, tl.minimum(start + P.repeats, P.rounds)):
        place = lane_places(first, images, P)
        x0 = tl.program_id(1) * P.strip
        of_case(arrays, place, rows, x0, column_of_lane, lane, 0, P)


@triton.jit
def of_case(arrays, place, rows, x0, columns, lane, NUMBER: tl.constexpr, P: tl.constexpr):
    """Runs the code for the border case of the program's strips, from case NUMBER on."""
    strip = tl.program_id(1)
    case: tl.constexpr = P.case(NUMBER)
    if NUMBER == P.case_count - 1:
        one_strip(arrays, place, rows, x0, columns, lane, case, P)
    else:
        if (strip >= case.first) & (strip <= case.last):
            one_strip(arrays, place, rows, x0, columns, lane, case, P)
        else:
            of_case(arrays, place, rows, x0, columns, lane, NUMBER + 1, P)


@triton.jit
def one_strip(arrays, place, rows, x0, columns, lane, CASE: tl.constexpr, P: tl.constexpr):
    """All results of a strip, by the fast path if its normalizers allow."""
    R: tl.constexpr = P.strip
    MASKED: tl.constexpr = CASE.masked
    queries = load_strip(arrays.query, place, x0, 0, MASKED, P, True)
    g = load_strip_channels(arrays.d_out, place, x0, MASKED, P)
    zero = tl.zeros((P.lanes,), tl.float32)
    starts = (zero,) * R
    worst = 0
    if P.softmax:
        y = load_strip_channels(arrays.out, place, x0, MASKED, P)
        here = tl.zeros((P.lanes,), tl.int32)
        for i in tl.static_range(R):
            live = live_lanes(place, x0, i, MASKED, P)
            f = load_number(arrays.factor, place, x0, i, MASKED, P)
            shifted = load_number(arrays.shift, place, x0, i, MASKED, P) != 0
            shifted |= imprecise(queries[i], P)
            wide = (f < MIN_FACTOR) | (f > MAX_FACTOR) | (f != f)
            here = tl.maximum(here, tl.where(shifted, SHIFTED, tl.where(wide, WIDE_FACTOR, PLAIN)))
            start = -dot(g[i], y[i], zero, P)
            store_numbers(arrays.pairs, place, x0, i, (f, start), live, MASKED, P)
            starts = replaced(starts, i, start * f)
            g = replaced(g, i, scaled(g[i], f))
        store_severity(arrays.severity, place, here, P)
        worst = tl.max(here, 0)
    if worst == 0:
        gather(arrays, place, rows, x0, columns, lane, queries, g, starts, CASE, P)
    else:
        exact_path(arrays, place, rows, x0, columns, lane, P)


@triton.jit
def store_severity(severity, place, here, P: tl.constexpr):
    """Writes the severity of each lane."""
    index = (place.image * P.strips + tl.program_id(1)) * P.out_height + place.row
    address = address_of(severity, index * P.groups + place.group)
    store_words(address, 0, (here,), place.active.to(tl.int32), not P.all_active)


@triton.jit
def gather(
    arrays, place, rows, x0, columns, lane, queries, g, starts, CASE: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Sums over the taps of a strip by the fast path; g and starts hold the factor."""
    R: tl.constexpr = P.strip
    D: tl.constexpr = P.depth
    Kw: tl.constexpr = P.kw
    MASKED: tl.constexpr = CASE.masked
    low: tl.constexpr = CASE.low
    high: tl.constexpr = CASE.high
    left = x0 * P.stride - P.left
    zero = tl.zeros((P.lanes,), tl.float32)
    if MASKED or not P.all_active:  # pixels that do not exist add nothing to d_prior
        for i in tl.static_range(R):
            live = live_lanes(place, x0, i, MASKED, P).to(tl.float32)
            g = replaced(g, i, scaled(g[i], live))
            starts = replaced(starts, i, starts[i] * live)
    sums = ((zero,) * D,) * R
    for dy in range(rows[0], rows[1]):
        line, valid = key_row(place, dy, P)
        priors = window_priors(arrays.prior, dy, valid, place.group, P, True)
        of_prior = (zero,) * Kw
        for c in tl.static_range(low, high):
            k, v, exists, _ = column(
                arrays.key, arrays.value, line, left, c, P.width, place.group, valid, 1, MASKED, P
            )
            for i in tl.static_range(R):
                if P.tap(c, i) >= 0:
                    weight, slopes = logit(queries[i], k, priors[P.tap(c, i)], P, True)
                    d_logit = dot(g[i], v, starts[i], P)
                    if P.softmax:
                        d_logit = exp2(weight) * d_logit
                    d_logit = masked(d_logit, exists, MASKED, P)
                    sums = replaced(sums, i, accumulate(sums[i], d_logit, slopes, P))
                    of_prior = replaced(of_prior, P.tap(c, i), of_prior[P.tap(c, i)] + d_logit)
        if P.has_prior:
            add(arrays.d_prior, dy, columns, lane, of_prior, P)
    for i in tl.static_range(R):
        found = scaled(sums[i], P.gradient_factor(True))
        live = live_lanes(place, x0, i, MASKED, P)
        store_components(arrays.d_query, place, x0, i, found, 0, live, MASKED, P)


@triton.jit
def exact_path(arrays, place, rows, x0, columns, lane, P: tl.constexpr):
    """Pixel by pixel: it runs rarely, so it is written to be small and not fast."""
    for i in range(P.strip):
        exact_pixel(arrays, place, rows, x0 + i, columns, lane, P.with_strip(1))


@triton.jit
def exact_pixel(arrays, place, rows, x0, columns, lane, P: tl.constexpr):
    """The sums over the taps of one pixel, with logits in natural units minus their shift."""
    D: tl.constexpr = P.depth
    Kw: tl.constexpr = P.kw
    left = x0 * P.stride - P.left
    zero = tl.zeros((P.lanes,), tl.float32)
    live = live_lanes(place, x0, 0, True, P)
    q = load_strip(arrays.query, place, x0, 0, True, P, False)[0]
    g = load_strip_channels(arrays.d_out, place, x0, True, P)[0]
    y = load_strip_channels(arrays.out, place, x0, True, P)[0]
    start = -dot(g, y, zero, P)
    f = load_number(arrays.factor, place, x0, 0, True, P)
    largest = load_number(arrays.shift, place, x0, 0, True, P)
    sums = (zero,) * D
    for dy in range(rows[0], rows[1]):
        line, valid = key_row(place, dy, P)
        priors = window_priors(arrays.prior, dy, valid, place.group, P, False)
        of_prior = (zero,) * Kw
        for c in tl.static_range(Kw):
            k, v, exists, _ = column(
                arrays.key, arrays.value, line, left, c, P.width, place.group, valid, 1, True, P
            )
            found, slopes = logit(q, k, priors[c], P, False)
            weight = exp2((found - largest) * LOG2E) * f
            d_logit = tl.where(exists & live, weight * dot(g, v, start, P), 0.0)
            sums = accumulate(sums, d_logit, slopes, P)
            of_prior = replaced(of_prior, c, d_logit)
        if P.has_prior:
            add(arrays.d_prior, dy, columns, lane, of_prior, P)
    found = scaled(sums, P.gradient_factor(False))
    store_components(arrays.d_query, place, x0, 0, found, 0, live, True, P)


@triton.jit
def prior_address(d_prior, row, columns, P: tl.constexpr):
    """The address of each lane's sums of a window row."""
    return address_of(d_prior, (row * P.prior_columns + columns) * P.prior_row)


@triton.jit
def clear(d_prior, columns, lane, P: tl.constexpr):
    """Sets the sums of all window rows to 0."""
    width: tl.constexpr = P.prior_row
    zero = tl.zeros((P.lanes,), tl.float32)
    exists = (lane < P.round_lanes).to(tl.int32)
    partial: tl.constexpr = P.round_lanes % P.lanes > 0
    for row in range(P.kh):
        address = prior_address(d_prior, row, columns, P)
        store_floats(address, 0, (zero,) * width, 4, 4, "fp32", exists, partial)


@triton.jit
def add(d_prior, row, columns, lane, sums, P: tl.constexpr):
    """Adds the sums of a window row to those in memory."""
    width: tl.constexpr = P.prior_row
    Kw: tl.constexpr = P.kw
    exists = (lane < P.round_lanes).to(tl.int32)
    partial: tl.constexpr = P.round_lanes % P.lanes > 0
    if partial:  # lanes without a column read that of the last one
        columns = columns - tl.maximum(lane - (P.round_lanes - 1), 0)
    address = prior_address(d_prior, row, columns, P)
    for first in tl.static_range(0, width, 4):
        words = load_words(address, 4 * first, 4, False)
        total = ()
        for j in tl.static_range(4):
            old = words[j].to(tl.float32, bitcast=True)
            if first + j < Kw:
                old += sums[first + j]
            total += (old,)
        store_floats(address, 4 * first, total, 4, 4, "fp32", exists, partial)
