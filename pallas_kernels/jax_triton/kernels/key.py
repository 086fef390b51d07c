"""The kernel for d_key and d_value. It gathers: no two lanes add to one number.

With the equations of `query`:

    d_key   = sum over taps    d_logit * dPhi/dkey
    d_value = sum over taps    w * g

A lane owns one group of a strip of neighbouring keys. It keeps them, their values and the sums of
both gradients in registers. It visits the rows of output pixels whose windows contain the keys,
and in a row one column of outputs after the other. Each query and gradient that it loads serves
all keys of the strip that the output's window contains.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pallas_kernels.jax_triton.kernels.channels import add_weighted, dot
from pallas_kernels.jax_triton.kernels.memory import address_of, load_floats, load_words
from pallas_kernels.jax_triton.kernels.pixels import (
    live_lanes,
    load_strip,
    load_strip_channels,
    store_channels,
    store_components,
)
from pallas_kernels.jax_triton.kernels.places import lane_places, row_range, window_priors
from pallas_kernels.jax_triton.kernels.query import LOG2E, SHIFTED
from pallas_kernels.jax_triton.kernels.taps import (
    accumulate,
    exp2,
    logit,
    replaced,
    scaled,
)
from pallas_kernels.jax_triton.kernels.windows import column, masked


class Arrays(NamedTuple):
    """The arguments of `key_gradients`, pointers to the first elements."""

    query: Any
    key: Any
    value: Any
    prior: Any
    d_out: Any
    shift: Any
    pairs: Any
    d_key: Any
    d_value: Any


@triton.jit
def key_gradients(
    query, key, value, prior, d_out, shift, pairs, severity, d_key, d_value, P: tl.constexpr
):
    """The kernel with a softmax. Grid: `Plan.grid`.

    Args:
      query: (B, Ho, Wo, G, D).
      key: (B, H, W, G, D).
      value: (B, H, W, C).
      prior: the table of `launch.prior_table`, or anything without a prior.
      d_out: (B, Ho, Wo, C), the gradient of the output.
      shift: (B, Ho, Wo, G) float32, from the forward kernel.
      pairs: (B, Ho, Wo, G, 2) float32, from the query kernel.
      severity: (B, H) int32: the worst one of the outputs whose windows contain a row of keys.
      d_key: (B, H, W, G, D), written.
      d_value: (B, H, W, C), written.
      P: the plan.
    """
    arrays = Arrays(query, key, value, prior, d_out, shift, pairs, d_key, d_value)
    first = tl.program_id(0) * P.lanes
    place = lane_places(first, tl.program_id(2), P)
    rows = output_rows(first, P)
    of_row = load_words(address_of(severity, place.image * P.height + place.row), 0, 1)[0]
    if tl.max(of_row, 0) == SHIFTED:
        exact_path(arrays, place, rows, P)
    else:
        of_case(arrays, place, rows, 0, P)


@triton.jit
def unnormalized_key_gradients(query, key, value, prior, d_out, d_key, d_value, P: tl.constexpr):
    """The kernel without softmax; the arguments of `key_gradients`."""
    arrays = Arrays(query, key, value, prior, d_out, d_out, d_out, d_key, d_value)
    first = tl.program_id(0) * P.lanes
    place = lane_places(first, tl.program_id(2), P)
    of_case(arrays, place, output_rows(first, P), 0, P)


@triton.jit
def output_rows(first, P: tl.constexpr):
    """The iterations of the loop over output rows that a program needs: start, and end.

    Iteration 0 visits the lowest output row whose windows may contain a key, and i the i-th above.
    """
    low, high, phase = row_range(first, P)
    low += P.top
    high += P.top
    s: tl.constexpr = P.stride
    offset = 0
    if P.phases > 1:  # rows of one phase use the same rows of windows
        offset = (phase + P.top) % s
        if low - high >= P.phases or (high - low) % s > 0:
            offset = 0
    start = tl.maximum(low // s - (P.out_height - 1), 0)
    return start, tl.minimum(high // s, (P.kh - 1 - offset) // s) + 1


@triton.jit
def of_case(arrays, place, rows, NUMBER: tl.constexpr, P: tl.constexpr):
    """Runs the code for the border case of the program's strips, from case NUMBER on."""
    strip = tl.program_id(1)
    case: tl.constexpr = P.case(NUMBER)
    if NUMBER == P.case_count - 1:
        gather(arrays, place, rows, strip * P.strip, case, P.softmax, P)
    else:
        if (strip >= case.first) & (strip <= case.last):
            gather(arrays, place, rows, strip * P.strip, case, P.softmax, P)
        else:
            of_case(arrays, place, rows, NUMBER + 1, P)


@triton.jit
def exact_path(arrays, place, rows, P: tl.constexpr):
    """As few keys at a time as the stride allows: it runs rarely, so it is small and not fast."""
    for i in range(P.strip // P.stride):
        part: tl.constexpr = P.with_strip(P.stride)
        x0 = tl.program_id(1) * P.strip + i * P.stride
        gather(arrays, place, rows, x0, part.whole_case, False, part)


@triton.jit
def gather(arrays, place, rows, x0, CASE: tl.constexpr, FAST: tl.constexpr, P: tl.constexpr):
    """Sums over the outputs whose windows contain a strip of keys, and stores both gradients."""
    R: tl.constexpr = P.strip
    D: tl.constexpr = P.depth
    M: tl.constexpr = P.m
    MASKED: tl.constexpr = CASE.masked
    low: tl.constexpr = CASE.low
    high: tl.constexpr = CASE.high
    row, group = place.row, place.group
    zero = tl.zeros((P.lanes,), tl.float32)
    keys = load_strip(arrays.key, place, x0, 1, MASKED, P, FAST)
    values = load_strip_channels(arrays.value, place, x0, MASKED, P)
    key_sums, value_sums = ((zero,) * D,) * R, ((zero,) * M,) * R
    for number in range(rows[0], rows[1]):
        yo = (row + P.top) // P.stride - number
        in_window = row + P.top - yo * P.stride
        valid = (yo >= 0) & (yo < P.out_height) & (in_window < P.kh)
        yo = tl.minimum(tl.maximum(yo, 0), P.out_height - 1)
        line = (place.image * P.out_height + yo) * P.out_width
        priors = window_priors(arrays.prior, in_window, valid, group, P, FAST)
        for c in tl.static_range(low, high):
            q, g, exists, pixel = column(
                arrays.query, arrays.d_out, line, x0 // P.stride, c, P.out_width, group, valid, 0,
                MASKED, P,
            )  # fmt: skip
            start, factor, largest = zero, zero, zero
            if P.softmax:
                index = pixel * P.groups + group
                pair = address_of(arrays.pairs, 2 * index)
                factor, start = load_floats(pair, 0 if MASKED else 8 * c * P.groups, 2, 2, "fp32")
                if not FAST:
                    largest = load_floats(
                        address_of(arrays.shift, index),
                        0 if MASKED else 4 * c * P.groups,
                        1,
                        1,
                        "fp32",
                    )[0]
            for i in tl.static_range(R):
                if P.tap(c, i) >= 0:
                    weight, slopes = logit(keys[i], q, priors[P.tap(c, i)], P, FAST)
                    d_logit = dot(g, values[i], start, P)
                    if P.softmax:
                        if not FAST:
                            weight = (weight - largest) * LOG2E
                        weight = exp2(weight) * factor
                        weight = masked(weight, exists, MASKED, P)
                        d_logit = weight * d_logit
                    else:
                        weight = masked(weight, exists, MASKED, P)
                        d_logit = masked(d_logit, exists, MASKED, P)
                    key_sums = replaced(key_sums, i, accumulate(key_sums[i], d_logit, slopes, P))
                    value_sums = replaced(value_sums, i, add_weighted(weight, g, value_sums[i], P))
    for i in tl.static_range(R):
        live = live_lanes(place, x0, i, MASKED, P)
        found = scaled(key_sums[i], P.gradient_factor(FAST))
        store_components(arrays.d_key, place, x0, i, found, 1, live, MASKED, P)
        store_channels(arrays.d_value, place, x0, i, value_sums[i], live, MASKED, P)
