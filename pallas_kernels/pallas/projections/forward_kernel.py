"""The forward kernel: values, keys and queries in one pass."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.pallas.lanes.arithmetic import Alu
from pallas_kernels.pallas.lanes.memory import result
from pallas_kernels.pallas.projections.arrays import Inputs
from pallas_kernels.pallas.projections.parts import (
    PROGRAMS,
    Operands,
    channels,
    in_memory,
    normalized,
    parameters,
    place,
    projection_of,
    sizes,
)
from pallas_kernels.pallas.stem.arrays import Maps, map_shapes
from pallas_kernels.pallas.stem.blocks import (
    Block,
    Stem,
    call,
    load,
    product,
    store,
)


def forward(inputs: Inputs, stride: int, *, interpret: bool = False) -> Maps:
    """See `projections.forward`."""
    stem, shapes = sizes(inputs, stride), map_shapes(inputs, stride)
    blocks = stem.blocks(max(1, PROGRAMS // stem.groups))
    [maps] = call(
        functools.partial(_kernel, stem, blocks, Alu(ptx=not interpret)),
        "projections_forward",
        interpret,
        grid=(pl.cdiv(stem.group_pixels, stem.pixels * blocks), stem.groups),
        out_shape=[Maps(*(result(inputs.x, shape.size, shape.dtype) for shape in shapes))],
    )(in_memory(stem, inputs))
    return Maps(*(flat.reshape(shape.shape) for flat, shape in zip(maps, shapes, strict=True)))


def _kernel(stem: Stem, blocks: int, alu: Alu, operands: Operands, maps: Maps) -> None:
    program, group = pl.program_id(0), pl.program_id(1)
    whole = stem.group_pixels % (stem.pixels * blocks) == 0
    c = channels(stem.padded_channels)
    gain, offset = parameters(stem, operands, group, 2, c)
    projection = projection_of(stem, operands, c)

    def write(turn: jax.Array, done: jax.Array) -> jax.Array:
        block = Block.at(stem, alu, group, program * blocks + turn, whole)
        index, mask = place(block, c)
        x = load(operands.x, index, mask).astype(jnp.float32)
        value = jnp.maximum(normalized(block, x, gain, offset), 0).astype(stem.dtype)
        store(alu, maps.value, index, value, mask)
        columns = product(value, projection)
        for ref, (index, mask) in ((maps.key, block.keys()), (maps.query, block.queries())):
            store(alu, ref, index, columns, mask)
        return done

    lax.fori_loop(0, blocks, write, 0)
