"""The backward kernel of the stem: the gradients of the parameters in one pass.

It computes the map of the images again. A program adds up several blocks of pixels in registers and
writes its sums, which XLA adds up afterwards: no atomics, so that every run repeats bit for bit.
Sums with the images are multiply-adds of float32 numbers, because tensor cores would round the
gradient first.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.pallas.lanes.arithmetic import Alu, Number, Ops
from pallas_kernels.pallas.lanes.memory import result
from pallas_kernels.pallas.stem.arrays import Inputs, Maps, Sums
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

PROGRAMS = 2048  # at least so many where there are pixels enough: several for each SM
MOST_BLOCKS = 64  # of a program; it writes as many sums as two to five blocks have


def backward(inputs: Inputs, d_maps: Maps, stride: int, *, interpret: bool = False) -> Sums:
    """See `stem.backward`."""
    stem = Stem.of(inputs, stride)
    blocks = min(MOST_BLOCKS, stem.blocks(max(1, PROGRAMS // stem.groups)))
    programs = pl.cdiv(stem.group_pixels, stem.pixels * blocks)
    count, channels = stem.groups * programs, stem.padded_channels
    [(sums, columns)] = call(
        functools.partial(_kernel, stem, blocks, Alu(ptx=not interpret)),
        "stem_backward",
        interpret,
        grid=(programs, stem.groups),
        out_shape=[
            (
                result(inputs.x, count * (1 + stem.inputs) * channels, jnp.float32),
                result(inputs.x, count * stem.padded_columns * channels, jnp.float32),
            )
        ],
    )(in_memory(stem, inputs), Maps(*(gradient.reshape(-1) for gradient in d_maps)))
    sums = jnp.sum(sums.reshape(stem.groups, programs, -1, channels), 1)[..., : stem.channels]
    columns = jnp.sum(columns.reshape(count, -1, channels), 0)[:, : stem.channels].T
    end = stem.keys + stem.queries
    return Sums(sums[:, 0], sums[:, 1:], columns[:, : stem.keys], columns[:, stem.keys : end])


def _kernel(
    stem: Stem,
    blocks: int,
    alu: Alu,
    operands: Operands,
    d_maps: Maps,
    sums: tuple[jax.Array, jax.Array],
) -> None:
    program, group = pl.program_id(0), pl.program_id(1)
    programs = pl.num_programs(0)
    whole = stem.group_pixels % (stem.pixels * blocks) == 0
    parameters = Parameters.load(stem, operands, group)
    # (columns, C): the operand of a product as it is in memory.
    projection = load(operands.columns, projection_index(stem))

    def add(turn: jax.Array, totals: list[jax.Array]) -> list[jax.Array]:
        block = Block.at(stem, alu, group, program * blocks + turn, whole)
        return _add_block(block, parameters, projection, operands, d_maps, totals)

    zero = jnp.zeros((stem.pixels, stem.padded_channels), jnp.float32)
    columns = jnp.zeros((stem.padded_columns, stem.padded_channels), jnp.float32)
    *totals, columns = lax.fori_loop(0, blocks, add, [zero] * (1 + stem.inputs) + [columns])
    place, c = group * programs + program, jnp.arange(stem.padded_channels, dtype=jnp.int32)
    for i, total in enumerate(totals):
        row = place * (1 + stem.inputs) + i
        store(alu, sums[0], row * stem.padded_channels + c, jnp.sum(total, 0))
    row = place * stem.padded_columns + jnp.arange(stem.padded_columns, dtype=jnp.int32)
    store(alu, sums[1], row[:, None] * stem.padded_channels + c[None, :], columns)


def _add_block(
    block: Block,
    parameters: Parameters,
    projection: jax.Array,
    operands: Operands,
    d_maps: Maps,
    totals: list[jax.Array],
) -> list[jax.Array]:
    """Adds the pixels of a block to the sums of a program."""
    centred = block.centred(operands.x, parameters)
    linear = block.linear(centred, parameters)
    # Columns that are no keys are 0 in the first, and those that are no queries in the second.
    d_columns = load(d_maps.key, *block.keys()) + load(d_maps.query, *block.queries())
    d_value = load(d_maps.value, *block.channels()).astype(jnp.float32)
    d_value = d_value + product(d_columns, projection, (1, 1))
    gradient = jnp.where(linear > 0, d_value, 0.0)

    def body(
        ops: Ops[Number], gradient: Number, x: list[Number], totals: list[Number]
    ) -> list[Number]:
        products = [ops.fma(gradient, a, b) for a, b in zip(x, totals[1:], strict=True)]
        return [totals[0] + gradient, *products]

    *sums, columns = totals
    sums = block.alu.inline(body, gradient, [x[:, None] for x in centred], sums)
    value = jnp.maximum(linear, 0).astype(block.stem.dtype)
    # As (columns, C), whose rows are few: with 64 rows or more, Triton takes other instructions.
    return [*sums, columns + product(d_columns, value, (0, 0))]
