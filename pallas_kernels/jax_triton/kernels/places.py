"""Where lanes work: their group, row and image, and the window rows that they visit."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pallas_kernels.jax_triton.kernels.memory import address_of, load_floats, load_words


class Place(NamedTuple):
    """Where each lane works, (N,) each.

    Attributes:
      image: number of the image.
      row: of what the lane owns: output pixels, or keys.
      group: of channels.
      active: whether the lane has work; others repeat that of another lane and store nothing.
    """

    image: Any
    row: Any
    group: Any
    active: Any


@triton.jit
def lane_places(first, images, P: tl.constexpr):
    """The `Place` of each lane.

    Lanes run over groups, so that a warp reads whole cache lines, then down the image, then over
    the images that share programs.

    Args:
      first: number of the first lane.
      images: number of the round of images.
    """
    lane = first + tl.arange(0, P.lanes)
    active = lane < P.round_lanes
    lane = tl.minimum(lane, P.round_lanes - 1).to(tl.uint32)  # unsigned divisions are cheaper
    group = (lane % P.groups).to(tl.int32)
    lane = lane // P.groups
    row = (lane % (P.rows // P.phases)).to(tl.int32)
    lane = lane // (P.rows // P.phases)
    row = row * P.phases + (lane % P.phases).to(tl.int32)
    image = (lane // P.phases).to(tl.int32) + images * P.together
    active &= image < P.batch
    return Place(tl.minimum(image, P.batch - 1), row, group, active)


@triton.jit
def row_range(first, P: tl.constexpr):
    """(lowest row, highest row, phase of all rows or 0) of a program's lanes.

    The phase is that of `Plan.phases`.
    """
    last = tl.minimum(first + P.lanes, P.round_lanes) - 1
    run: tl.constexpr = P.rows // P.phases * P.groups
    low, high, phase = 0, P.rows - 1, 0
    if first // run == last // run:
        phase = first // run % P.phases
        low = first // P.groups % (P.rows // P.phases) * P.phases + phase
        high = last // P.groups % (P.rows // P.phases) * P.phases + phase
    return low, high, phase


@triton.jit
def window_rows(first, P: tl.constexpr):
    """The window rows of a program's output pixels that reach into the image: start, and end."""
    low, high, _ = row_range(first, P)
    start = tl.maximum(P.top - high * P.stride, 0)
    end = tl.minimum(P.height - 1 + P.top - low * P.stride + 1, P.kh)
    return start, end


@triton.jit
def value_addresses(pointer, pixel, group, P: tl.constexpr):
    """The addresses of a lane's channels at a pixel, for `load_channels`.

    The last group may lack channels. The second address serves the accesses that it lacks: in the
    lanes of the last group, it leads to channels that exist.
    """
    address = address_of(pointer, pixel * P.channels + group * P.m)
    second = address
    if P.last_group < P.m:
        lacking: tl.constexpr = (P.m - P.last_group) * P.item(2)
        second = address - tl.where(group == P.groups - 1, lacking, 0).to(tl.int64)
    return address, second


@triton.jit
def load_channels(addresses, PIXELS: tl.constexpr, P: tl.constexpr):
    """A lane's channels, PIXELS pixels from the addresses; arbitrary if they do not exist."""
    offset: tl.constexpr = PIXELS * P.channels * P.item(2)
    first, second = addresses
    found = load_floats(first, offset, P.last_group, P.vector(2), P.dtypes[2])
    if P.last_group < P.m:
        found += load_floats(
            second,
            offset + P.last_group * P.item(2),
            P.m - P.last_group,
            P.vector(2),
            P.dtypes[2],
        )
    return found


@triton.jit
def load_priors(pointer, row, group, P: tl.constexpr, FAST: tl.constexpr):
    """The Kw priors of a window row, as a tuple; row Kh is that of rows outside the image."""
    Kw: tl.constexpr = P.kw
    number = row + (0 if FAST and P.softmax else P.kh + 1)
    address = address_of(pointer, (number * P.groups + group) * P.prior_row)
    found = ()
    for i in tl.static_range(0, Kw, 4):
        words = load_words(address, 4 * i, 4)
        for j in tl.static_range(4):
            if i + j < P.kw:
                found += (words[j].to(tl.float32, bitcast=True),)
    return found


@triton.jit
def window_priors(pointer, row, valid, group, P: tl.constexpr, FAST: tl.constexpr):
    """The priors of a window row; outside the image, those that make a softmax's weights 0."""
    Kw: tl.constexpr = P.kw
    if P.has_prior:
        found = load_priors(pointer, tl.where(valid, row, P.kh), group, P, FAST)
    else:
        outside: tl.constexpr = float("-inf") if P.softmax else 0.0
        prior = tl.where(valid, 0.0, outside)
        found = ()
        for _ in tl.static_range(Kw):
            found += (prior,)
    return found
