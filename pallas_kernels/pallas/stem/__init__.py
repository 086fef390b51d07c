"""What the first layer of a network makes of images, as two small kernels.

An image has few channels and the stem has many, so what costs is the traffic of its maps in memory.
The forward kernel writes values, keys and queries in one pass. The backward kernel reads their
gradients in one pass. Both compute the map of the image in registers. `blocks` says what a program
owns, `forward_kernel` and `backward_kernel` are the kernels.
"""

import math

import pallas_kernels.pallas
from pallas_kernels.pallas.stem.arrays import Inputs, Maps, Sums, map_shapes, padded

__all__ = ["Inputs", "Maps", "Sums", "backward", "forward", "map_shapes", "unsupported"]

MAX_CHANNELS = 128
# Bytes of channels times columns of keys and queries, which a program holds in registers.
MAX_PROJECTION = 4096


def unsupported(inputs: Inputs) -> str | None:
    """Why the kernels cannot run this on any GPU; None if they can. Takes abstract arrays too."""
    if (reason := pallas_kernels.pallas.backend_gone()) is not None:
        return reason
    channels, columns = inputs.bias.shape[0], inputs.key.shape[1] + inputs.query.shape[1]
    if inputs.x.dtype.itemsize > 4:
        return f"images are {inputs.x.dtype}"
    if math.prod(inputs.x.shape[:3]) * max(channels, columns) > pallas_kernels.pallas.MAX_ELEMENTS:
        return f"the map of the images has more than {pallas_kernels.pallas.MAX_ELEMENTS} elements"
    size = padded(channels) * padded(columns) * inputs.x.dtype.itemsize
    if channels > MAX_CHANNELS or size > MAX_PROJECTION:
        return f"{channels} channels and {columns} columns of keys and queries are too many"
    return None


def forward(inputs: Inputs, stride: int, *, interpret: bool = False) -> Maps:
    """The maps of images.

    Args:
      inputs: the arrays.
      stride: of the queries.
      interpret: whether to run in JAX's interpreter: on any platform, slowly.
    """
    from pallas_kernels.pallas.stem import forward_kernel

    return forward_kernel.forward(inputs, stride, interpret=interpret)


def backward(inputs: Inputs, d_maps: Maps, stride: int, *, interpret: bool = False) -> Sums:
    """The sums from which the gradients of the parameters follow; arguments as in `forward`."""
    from pallas_kernels.pallas.stem import backward_kernel

    return backward_kernel.backward(inputs, d_maps, stride, interpret=interpret)
