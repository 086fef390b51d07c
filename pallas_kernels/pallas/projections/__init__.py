"""What a block makes of channels for its local relation, as three small kernels.

    value = relu(x * gain + offset)          (B, H, W, C)
    key   = value @ key                      (B, H, W, K)
    query = value @ query at some pixels     (B, Ho, Wo, Q)

These are a few operations for each number that is read, so that what costs is the traffic in
memory. The forward kernel reads x once and writes all three maps. In the backward pass, the first
kernel reads x and the gradients of the maps once for all sums, those of the statistics included.
From these sums follows the gradient of x, which the second kernel writes. The gradient of the value
with the shares of keys and queries is only ever in registers.
"""

import math

import jax

import pallas_kernels.pallas
from pallas_kernels.pallas.projections.arrays import Inputs, Sums
from pallas_kernels.pallas.stem.arrays import Maps, padded

__all__ = ["Inputs", "Maps", "Sums", "forward", "gradient", "sums", "unsupported"]

MAX_CHANNELS = 256
# Channels times columns of keys and queries, filled up, whose sums a program holds in registers.
MAX_PROJECTION = 16384


def unsupported(inputs: Inputs) -> str | None:
    """Why the kernels cannot run this on any GPU; None if they can. Takes abstract arrays too."""
    if (reason := pallas_kernels.pallas.backend_gone()) is not None:
        return reason
    channels, columns = inputs.x.shape[-1], inputs.key.shape[1] + inputs.query.shape[1]
    if inputs.x.dtype.itemsize != 2:
        return f"channels are {inputs.x.dtype}"
    if math.prod(inputs.x.shape[:3]) * max(channels, columns) > pallas_kernels.pallas.MAX_ELEMENTS:
        return f"the channels have more than {pallas_kernels.pallas.MAX_ELEMENTS} elements"
    if channels > MAX_CHANNELS or padded(channels) * padded(columns) > MAX_PROJECTION:
        return f"{channels} channels and {columns} columns of keys and queries are too many"
    return None


def forward(inputs: Inputs, stride: int, *, interpret: bool = False) -> Maps:
    """The maps.

    Args:
      inputs: the arrays.
      stride: of the queries.
      interpret: whether to run in JAX's interpreter: on any platform, slowly.
    """
    from pallas_kernels.pallas.projections import forward_kernel

    return forward_kernel.forward(inputs, stride, interpret=interpret)


def sums(inputs: Inputs, d_maps: Maps, stride: int, *, interpret: bool = False) -> Sums:
    """The sums from which the gradients of the parameters follow; arguments as in `forward`."""
    from pallas_kernels.pallas.projections import sums_kernel

    return sums_kernel.sums(inputs, d_maps, stride, interpret=interpret)


def gradient(
    inputs: Inputs,
    d_maps: Maps,
    slope: jax.Array,
    constant: jax.Array,
    stride: int,
    *,
    interpret: bool = False,
) -> jax.Array:
    """The gradient of x, like x: masked * gain + x * slope - constant.

    Args:
      inputs: the arrays.
      d_maps: the gradients of the maps; `masked` is what they make before the ReLU.
      slope: (N, C) float32.
      constant: (N, C) float32.
      stride: of the queries.
      interpret: see `forward`.
    """
    from pallas_kernels.pallas.projections import gradient_kernel

    return gradient_kernel.gradient(inputs, d_maps, slope, constant, stride, interpret=interpret)
