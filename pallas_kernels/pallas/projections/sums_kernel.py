"""The first backward kernel: all sums over pixels in one pass.

A program adds up several blocks of pixels in registers and writes its sums, which XLA adds up
afterwards: no atomics, so that every run repeats bit for bit.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.pallas.lanes.arithmetic import Alu, Number, Ops
from pallas_kernels.pallas.lanes.memory import result
from pallas_kernels.pallas.projections.arrays import Inputs, Sums
from pallas_kernels.pallas.projections.parts import (
    Operands,
    channels,
    flat,
    gradient_of_block,
    in_memory,
    parameters,
    projection_of,
    sizes,
)
from pallas_kernels.pallas.stem.arrays import Maps
from pallas_kernels.pallas.stem.blocks import (
    Block,
    Stem,
    call,
    product,
    store,
)

CHANNELS = 128  # of a program at most; the sums of more with all columns need too many registers
PROGRAMS = 512  # as in `parts`; fewer, because each writes its sums


def sums(inputs: Inputs, d_maps: Maps, stride: int, *, interpret: bool = False) -> Sums:
    """See `projections.sums`."""
    stem = sizes(inputs, stride)
    blocks = stem.blocks(max(1, PROGRAMS // stem.groups))
    programs = pl.cdiv(stem.group_pixels, stem.pixels * blocks)
    count, width = stem.groups * programs, stem.padded_channels
    [(sums, columns)] = call(
        functools.partial(_kernel, stem, blocks, Alu(ptx=not interpret)),
        "projections_sums",
        interpret,
        max(4, stem.padded_columns // 8),  # warps: 32 sums of columns in a lane
        # The first axis runs fastest: its programs find the same keys and queries in the L2 cache.
        grid=(pl.cdiv(width, CHANNELS), programs, stem.groups),
        out_shape=[
            (
                result(inputs.x, count * 2 * width, jnp.float32),
                result(inputs.x, count * stem.padded_columns * width, jnp.float32),
            )
        ],
    )(in_memory(stem, inputs), flat(d_maps))
    sums = jnp.sum(sums.reshape(stem.groups, programs, 2, width), 1)[..., : stem.channels]
    columns = jnp.sum(columns.reshape(count, -1, width), 0)[:, : stem.channels].T
    end = stem.keys + stem.queries
    return Sums(sums[:, 0], sums[:, 1], columns[:, : stem.keys], columns[:, stem.keys : end])


def _kernel(
    stem: Stem,
    blocks: int,
    alu: Alu,
    operands: Operands,
    d_maps: Maps,
    sums: tuple[jax.Array, jax.Array],
) -> None:
    program, group = pl.program_id(1), pl.program_id(2)
    place = group * pl.num_programs(1) + program
    whole = stem.group_pixels % (stem.pixels * blocks) == 0
    width = min(CHANNELS, stem.padded_channels)
    c = channels(width, pl.program_id(0) * width)
    gain, offset = parameters(stem, operands, group, 2, c)
    projection = projection_of(stem, operands, c)

    def body(
        ops: Ops[Number], masked: Number, x: Number, gradient: Number, products: Number
    ) -> list[Number]:
        return [gradient + masked, ops.fma(masked, x, products)]

    def add(turn: jax.Array, totals: list[jax.Array]) -> list[jax.Array]:
        block = Block.at(stem, alu, group, program * blocks + turn, whole)
        found = gradient_of_block(block, c, operands, d_maps, projection, gain, offset)
        *two, columns = totals
        two = alu.inline(body, found.masked, found.x, *two)
        value = jnp.maximum(found.linear, 0).astype(stem.dtype)
        # As (columns, C), whose rows are few: with 64 or more, Triton takes other instructions.
        return [*two, columns + product(found.columns, value, (0, 0))]

    zero = jnp.zeros((stem.pixels, width), jnp.float32)
    columns = jnp.zeros((stem.padded_columns, width), jnp.float32)
    *totals, columns = lax.fori_loop(0, blocks, add, [zero, zero, columns])
    for i, total in enumerate(totals):
        store(alu, sums[0], (place * 2 + i) * stem.padded_channels + c, jnp.sum(total, 0))
    row = place * stem.padded_columns + jnp.arange(stem.padded_columns, dtype=jnp.int32)
    store(alu, sums[1], row[:, None] * stem.padded_channels + c[None, :], columns)
