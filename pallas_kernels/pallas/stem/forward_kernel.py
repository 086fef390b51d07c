"""The forward kernel of the stem: values, keys and queries of a block of pixels in one pass."""

import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.pallas.lanes.arithmetic import Alu
from pallas_kernels.pallas.lanes.memory import result
from pallas_kernels.pallas.stem.arrays import Inputs, Maps, map_shapes
from pallas_kernels.pallas.stem.blocks import (
    Block,
    Operands,
    Parameters,
    Stem,
    call,
    in_memory,
    load,
    product,
    projection_index,
    store,
)


def forward(inputs: Inputs, stride: int, *, interpret: bool = False) -> Maps:
    """See `stem.forward`."""
    stem, shapes = Stem.of(inputs, stride), map_shapes(inputs, stride)
    [maps] = call(
        functools.partial(_kernel, stem, Alu(ptx=not interpret)),
        "stem_forward",
        interpret,
        grid=(pl.cdiv(stem.group_pixels, stem.pixels), stem.groups),
        # In a list, because a tuple at the top would reach the kernel as one argument per field.
        out_shape=[Maps(*(result(inputs.x, shape.size, shape.dtype) for shape in shapes))],
    )(in_memory(stem, inputs))
    return Maps(*(flat.reshape(shape.shape) for flat, shape in zip(maps, shapes, strict=True)))


def _kernel(stem: Stem, alu: Alu, operands: Operands, maps: Maps) -> None:
    group = pl.program_id(1)
    whole = stem.group_pixels % stem.pixels == 0
    block = Block.at(stem, alu, group, pl.program_id(0), whole)
    parameters = Parameters.load(stem, operands, group)
    value = jnp.maximum(block.linear(block.centred(operands.x, parameters), parameters), 0)
    value = value.astype(stem.dtype)
    index, mask = block.channels()
    store(alu, maps.value, index, value, mask)
    columns = product(value, load(operands.columns, projection_index(stem)))
    for ref, (index, mask) in ((maps.key, block.keys()), (maps.query, block.queries())):
        store(alu, ref, index, columns, mask)
