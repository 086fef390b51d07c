"""A lane's strip of pixels: what it loads of each, and how it stores results of one."""

import triton
import triton.language as tl

from pallas_kernels.jax_triton.kernels.memory import address_of, load_floats, store_floats
from pallas_kernels.jax_triton.kernels.places import load_channels, value_addresses
from pallas_kernels.jax_triton.kernels.taps import prepared

# Every function takes the first pixel of a strip, x0, and a pixel i of it. Where a strip may reach
# beyond the right border (MASKED), the address of each pixel is computed, and is that of the last
# pixel beyond the border. Elsewhere all pixels share the address of the first one.


@triton.jit
def pixel_number(place, x0, i: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr):
    """The number, among all pixels that lanes own, of the pixel whose address pixel i takes."""
    x = x0
    if MASKED:
        x = tl.minimum(x0 + i, P.columns - 1)
    return (place.image * P.rows + place.row) * P.columns + x


@triton.jit
def live_lanes(place, x0, i: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr):
    """The lanes that have work and whose pixel i is in the image."""
    live = place.active
    if MASKED:
        live &= x0 + i < P.columns
    return live


@triton.jit
def load_strip(
    pointer, place, x0, WHICH: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """The prepared queries (WHICH = 0) or keys (1) of a strip, for each pixel."""
    R: tl.constexpr = P.strip
    pitch: tl.constexpr = P.groups * P.depth * P.item(WHICH)
    found = ()
    for i in tl.static_range(R):
        index = (pixel_number(place, x0, i, MASKED, P) * P.groups + place.group) * P.depth
        x = load_floats(
            address_of(pointer, index),
            0 if MASKED else i * pitch,
            P.depth,
            P.vector(WHICH),
            P.dtypes[WHICH],
        )
        found += (prepared(x, P, FAST),)
    return found


@triton.jit
def load_strip_channels(pointer, place, x0, MASKED: tl.constexpr, P: tl.constexpr):
    """The lane's channels of each pixel of a strip; 0 where they do not exist."""
    R: tl.constexpr = P.strip
    group = place.group
    found = ()
    for i in tl.static_range(R):
        addresses = value_addresses(pointer, pixel_number(place, x0, i, MASKED, P), group, P)
        found += (existing(load_channels(addresses, 0 if MASKED else i, P), group, P),)
    return found


@triton.jit
def existing(x, group, P: tl.constexpr):
    """The channels, with 0 for those that the last group does not have."""
    last: tl.constexpr = P.last_group
    M: tl.constexpr = P.m
    found = x[:last]
    for j in tl.static_range(last, M):
        found += (tl.where(group == P.groups - 1, 0.0, x[j]),)
    return found


@triton.jit
def load_number(pointer, place, x0, i: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr):
    """A float32 of pixel i, of an array with one number per pixel and group."""
    index = pixel_number(place, x0, i, MASKED, P) * P.groups + place.group
    offset: tl.constexpr = 0 if MASKED else 4 * i * P.groups
    return load_floats(address_of(pointer, index), offset, 1, 1, "fp32")[0]


@triton.jit
def store_numbers(
    pointer, place, x0, i: tl.constexpr, parts, live, MASKED: tl.constexpr, P: tl.constexpr
):
    """Writes one or two float32 of pixel i."""
    index = pixel_number(place, x0, i, MASKED, P) * P.groups + place.group
    size: tl.constexpr = 4 * len(parts)
    store_floats(
        address_of(pointer, index * len(parts)),
        0 if MASKED else i * P.groups * size,
        parts,
        len(parts),
        4,
        "fp32",
        live.to(tl.int32),
        MASKED or not P.all_active,
    )


@triton.jit
def store_components(
    pointer, place, x0, i: tl.constexpr, parts, WHICH: tl.constexpr, live, MASKED: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Writes the D components of pixel i, in the dtype of queries (WHICH = 0) or keys (1)."""
    index = (pixel_number(place, x0, i, MASKED, P) * P.groups + place.group) * P.depth
    pitch: tl.constexpr = P.groups * P.depth * P.item(WHICH)
    store_floats(
        address_of(pointer, index),
        0 if MASKED else i * pitch,
        parts,
        P.vector(WHICH),
        P.item(WHICH),
        P.dtypes[WHICH],
        live.to(tl.int32),
        MASKED or not P.all_active,
    )


@triton.jit
def store_channels(
    pointer, place, x0, i: tl.constexpr, parts, live, MASKED: tl.constexpr, P: tl.constexpr
):
    """Writes a lane's channels of pixel i."""
    group = place.group
    index = pixel_number(place, x0, i, MASKED, P) * P.channels + group * P.m
    address = address_of(pointer, index)
    offset: tl.constexpr = 0 if MASKED else i * P.channels * P.item(2)
    partial: tl.constexpr = MASKED or not P.all_active
    first, mask = parts[: P.last_group], live.to(tl.int32)
    store_floats(address, offset, first, P.vector(2), P.item(2), P.dtypes[2], mask, partial)
    if P.last_group < P.m:
        whole = (live & (group < P.groups - 1)).to(tl.int32)
        behind: tl.constexpr = offset + P.last_group * P.item(2)
        rest = parts[P.last_group :]
        store_floats(address, behind, rest, P.vector(2), P.item(2), P.dtypes[2], whole, True)
