"""The second backward kernel: the gradient of the channels before their normalisation."""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.pallas.lanes.arithmetic import Alu, Number, Ops
from pallas_kernels.pallas.lanes.memory import result
from pallas_kernels.pallas.projections.arrays import Inputs
from pallas_kernels.pallas.projections.parts import (
    PROGRAMS,
    Operands,
    channels,
    flat,
    gradient_of_block,
    in_memory,
    parameters,
    place,
    projection_of,
    sizes,
)
from pallas_kernels.pallas.stem.arrays import Maps
from pallas_kernels.pallas.stem.blocks import Block, Stem, call, store


def gradient(
    inputs: Inputs,
    d_maps: Maps,
    slope: jax.Array,
    constant: jax.Array,
    stride: int,
    *,
    interpret: bool = False,
) -> jax.Array:
    """See `projections.gradient`."""
    stem = sizes(inputs, stride)
    blocks = stem.blocks(max(1, PROGRAMS // stem.groups))
    [d_x] = call(
        functools.partial(_kernel, stem, blocks, Alu(ptx=not interpret)),
        "projections_gradient",
        interpret,
        max(1, stem.pixels * stem.padded_channels // 512),  # warps: 16 numbers in a lane
        grid=(pl.cdiv(stem.group_pixels, stem.pixels * blocks), stem.groups),
        out_shape=[result(inputs.x, inputs.x.size, inputs.x.dtype)],
    )(in_memory(stem, inputs, slope, -constant), flat(d_maps))
    return d_x.reshape(inputs.x.shape)


def _kernel(
    stem: Stem, blocks: int, alu: Alu, operands: Operands, d_maps: Maps, d_x: jax.Array
) -> None:
    program, group = pl.program_id(0), pl.program_id(1)
    whole = stem.group_pixels % (stem.pixels * blocks) == 0
    c = channels(stem.padded_channels)
    gain, offset, slope, constant = parameters(stem, operands, group, 4, c)
    projection = projection_of(stem, operands, c)

    def body(
        ops: Ops[Number], masked: Number, x: Number, gain: Number, slope: Number, constant: Number
    ) -> Number:
        return ops.fma(masked, gain, ops.fma(x, slope, constant))

    def write(turn: jax.Array, done: jax.Array) -> jax.Array:
        block = Block.at(stem, alu, group, program * blocks + turn, whole)
        found = gradient_of_block(block, c, operands, d_maps, projection, gain, offset)
        shared = (vector[None, :] for vector in (gain, slope, constant))
        index, mask = place(block, c)
        store(alu, d_x, index, alu.inline(body, found.masked, found.x, *shared), mask)
        return done

    lax.fori_loop(0, blocks, write, 0)
