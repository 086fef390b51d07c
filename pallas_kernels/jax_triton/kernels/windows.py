"""The columns of the other side that a strip visits in one row, and their addresses."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pallas_kernels.jax_triton.kernels.memory import address_of, load_floats
from pallas_kernels.jax_triton.kernels.places import load_channels, value_addresses


class Column(NamedTuple):
    """What a lane reads of one column: a key and its value, or a query and its output's gradient.

    Attributes:
      components: the D components of the query or key.
      channels: the M channels of the value or gradient.
      exists: whether the column is in the image.
      pixel: its number, among all queries or keys.
    """

    components: Any
    channels: Any
    exists: Any
    pixel: Any


@triton.jit
def column(
    components, channels, line, corner, c: tl.constexpr, limit: tl.constexpr, group, valid,
    WHICH: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Reads column c of a row.

    Args:
      components: pointer to queries (WHICH = 0) or keys (1).
      channels: pointer to what has C channels: values, or gradients of outputs.
      line: number of the first pixel of the row.
      corner: the column of the image where the strip's column 0 is.
      c: the column.
      limit: width of the row.
      group: of each lane.
      valid: whether the row is in the image.
      MASKED: whether the column may be outside the image. It is then replaced by the nearest one.
    """
    exists = valid
    x = corner
    if MASKED:
        x = corner + c
        exists = (x >= 0) & (x < limit)
        if not P.softmax:  # with one, the priors of other rows make weights 0
            exists &= valid
        x = tl.minimum(tl.maximum(x, 0), limit - 1)
    pixel = line + x
    pitch: tl.constexpr = P.groups * P.depth * P.item(WHICH)
    parts = load_floats(
        address_of(components, (pixel * P.groups + group) * P.depth),
        0 if MASKED else c * pitch,
        P.depth,
        P.vector(WHICH),
        P.dtypes[WHICH],
    )
    values = load_channels(value_addresses(channels, pixel, group, P), 0 if MASKED else c, P)
    return Column(parts, values, exists, pixel)


@triton.jit
def key_row(place, dy, P: tl.constexpr):
    """(row of keys, whether it is in the image) of row `dy` of the windows of output pixels."""
    y = place.row * P.stride + dy - P.top
    valid = (y >= 0) & (y < P.height)
    y = tl.minimum(tl.maximum(y, 0), P.height - 1)
    return (place.image * P.height + y) * P.width, valid


@triton.jit
def masked(weight, exists, MASKED: tl.constexpr, P: tl.constexpr):
    """The weight, 0 where the tap does not exist."""
    found = weight
    if MASKED or not P.softmax:
        found = tl.where(exists, weight, 0.0)
    return found
