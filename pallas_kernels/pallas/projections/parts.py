"""What the three kernels share: sizes, arrays in memory, and the map and gradient of a block."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.pallas.lanes.arithmetic import Number, Ops
from pallas_kernels.pallas.lanes.vectors import Mask, Ref, Scalar, Vector, and_masks
from pallas_kernels.pallas.projections.arrays import Inputs
from pallas_kernels.pallas.stem.arrays import Maps
from pallas_kernels.pallas.stem.blocks import Block, Stem, load, product

PROGRAMS = 1024  # at least so many where there are pixels enough: several for each SM


class Operands(NamedTuple):
    """The arrays as kernels read them: flat, with the parameters filled up.

    Attributes:
      x: as in `Inputs`.
      parameters: (N, number, C) gain, offset and what else there is for each channel.
      columns: (C, columns), the projections to keys and queries in the dtype of the maps.
    """

    x: Ref
    parameters: Ref
    columns: Ref


def sizes(inputs: Inputs, stride: int) -> Stem:
    """The sizes of arrays."""
    batch, height, width, channels = inputs.x.shape
    columns = inputs.key.shape[1], inputs.query.shape[1]
    groups, dtype = inputs.gain.shape[0], jnp.dtype(inputs.x.dtype)
    return Stem(batch, height, width, channels, channels, *columns, groups, stride, dtype)


def in_memory(stem: Stem, inputs: Inputs, *others: jax.Array) -> Operands:
    """The arrays as kernels read them; `others` are (N, C) like the gain."""
    spare = stem.padded_channels - stem.channels
    columns = jnp.concatenate([inputs.key, inputs.query], 1).astype(stem.dtype)
    columns = jnp.pad(columns, ((0, spare), (0, stem.padded_columns - columns.shape[1])))
    parameters = jnp.stack([inputs.gain, inputs.offset, *others], 1)
    parameters = jnp.pad(parameters, ((0, 0), (0, 0), (0, spare)))
    return Operands(inputs.x.reshape(-1), parameters.reshape(-1), columns.reshape(-1))


def flat(d_maps: Maps) -> Maps:
    """The gradients as kernels read them."""
    return Maps(*(gradient.reshape(-1) for gradient in d_maps))


def channels(number: int, first: Scalar = 0) -> jax.Array:
    """So many channels, (C,)."""
    return first + jnp.arange(number, dtype=jnp.int32)


def parameters(
    stem: Stem, operands: Operands, group: Scalar, number: int, c: jax.Array
) -> list[Vector]:
    """So many parameters of the channels c of a group, (C,) each."""
    start = group * (number * stem.padded_channels)
    return [load(operands.parameters, start + i * stem.padded_channels + c) for i in range(number)]


def projection_of(stem: Stem, operands: Operands, c: jax.Array) -> jax.Array:
    """The weights of the projections of the channels c, (C, columns)."""
    column = jnp.arange(stem.padded_columns, dtype=jnp.int32)
    return load(operands.columns, c[:, None] * stem.padded_columns + column[None, :])


def place(block: Block, c: jax.Array) -> tuple[jax.Array, Mask]:
    """Where the channels c of the pixels are, (P, C), and which of them exist."""
    width = block.stem.channels
    mask = None if block.exists is None else block.exists[:, None]
    if width < block.stem.padded_channels:
        mask = and_masks(mask, c[None, :] < width)
    return block.pixel[:, None] * width + c[None, :], mask


def normalized(block: Block, x: jax.Array, gain: Vector, offset: Vector) -> jax.Array:
    """The channels of a block before the ReLU, (P, C) float32."""

    def body(ops: Ops[Number], x: Number, gain: Number, offset: Number) -> Any:
        return ops.fma(x, gain, offset)

    result: jax.Array = block.alu.inline(body, x, gain[None, :], offset[None, :])
    return result


class Gradient(NamedTuple):
    """What the backward kernels need of a block.

    Attributes:
      x: (P, C) float32.
      linear: (P, C) float32, before the ReLU.
      masked: (P, C) float32, the gradient before the ReLU.
      columns: (P, columns), the gradients of keys and queries.
    """

    x: jax.Array
    linear: jax.Array
    masked: jax.Array
    columns: jax.Array


def gradient_of_block(
    block: Block,
    c: jax.Array,
    operands: Operands,
    d_maps: Maps,
    projection: jax.Array,
    gain: Vector,
    offset: Vector,
) -> Gradient:
    """The gradient of the channels c before the ReLU, of all three maps.

    `projection` is (C, columns).
    """
    index, mask = place(block, c)
    x = load(operands.x, index, mask).astype(jnp.float32)
    # Columns that are no keys are 0 in the first, and those that are no queries in the second.
    columns = load(d_maps.key, *block.keys()) + load(d_maps.query, *block.queries())
    d_value = load(d_maps.value, index, mask).astype(jnp.float32)
    d_value = d_value + product(columns, projection, (1, 1))
    linear = normalized(block, x, gain, offset)
    return Gradient(x, linear, jnp.where(linear > 0, d_value, 0.0), columns)
