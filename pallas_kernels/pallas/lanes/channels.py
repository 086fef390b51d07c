"""The channels of a value, output or gradient that a lane holds."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from pallas_kernels.pallas.lanes.memory import Address, Operand
from pallas_kernels.pallas.lanes.vectors import Mask, Scalar, Vector, Vectors, and_masks
from pallas_kernels.pallas.problem import Problem


@dataclasses.dataclass(frozen=True)
class Channels:
    """A group's channels, or a chunk of them, as vectors of `problem.vector` channels.

    Attributes:
      problem: the problem.
      start: number of the first channel, among all C.
      masks: for each vector, in which lanes it exists; the last group or chunk may be partial.
    """

    problem: Problem
    start: Vector
    masks: tuple[Mask, ...]

    @classmethod
    def of(cls, problem: Problem, group: Vector, chunk: Scalar) -> "Channels":
        """The channels of a chunk of a group."""
        m, size = problem.spec.channels_per_group, problem.vector
        offset = chunk * problem.chunk
        start = group * m + offset
        masks: list[Mask] = []
        if problem.chunks == 1:  # the first vectors exist even in the last group
            in_last_group = problem.channels % m or m
            whole = None if in_last_group == m else start + m <= problem.channels
            masks = [None if i < in_last_group else whole for i in range(0, m, size)]
            return cls(problem, start, tuple(masks))
        for first in range(0, problem.chunk, size):
            mask = None
            if problem.channels % m:
                mask = start + first < problem.channels
            if problem.chunks * problem.chunk != m:
                mask = and_masks(mask, jnp.broadcast_to(offset + first < m, start.shape))
            masks.append(mask)
        return cls(problem, start, tuple(masks))

    def addresses(self, operand: Operand, pixel: Vector) -> list[Address]:
        """The address of each vector at a pixel.

        The address of a vector that does not exist is that of another one. Reading it needs neither
        a mask nor zeros, but the reader must multiply by zero or not store the result.
        """
        size = self.problem.vector
        index = pixel * self.problem.channels + self.start
        always = self.masks.count(None)
        maybe = len(self.masks) - always
        out: list[Address] = []
        if self.problem.chunks > 1 or self.problem.channels < self.problem.spec.channels_per_group:
            for i, exists in enumerate(self.masks):
                offset = i * size if exists is None else jnp.where(exists, i * size, 0)
                out.append(Address(operand.base(index + offset), 0))
            return out
        # Vectors that exist in the same groups share a base. Where a group lacks the last vectors,
        # its lanes read the first ones, and those of the group before if there are too few.
        base_of_first = operand.base(index + (always - 1) * size)
        out = [Address(base_of_first, (i - always + 1) * size) for i in range(always)]
        exists = self.masks[-1]
        if exists is not None:
            substitute = min(maybe, always) - 1
            last = jnp.where(exists, (len(self.masks) - 1) * size, substitute * size)
            base_of_last = operand.base(index + last)
            out += [Address(base_of_last, (i - maybe + 1) * size) for i in range(maybe)]
        return out

    def load(
        self,
        operand: Operand,
        addresses: Sequence[Address],
        pixels: int,
        mask: Mask,
        exact: bool = True,
    ) -> Vectors:
        """Reads the channels as float32.

        Args:
          operand: the array.
          addresses: of some pixel.
          pixels: how far from that pixel, not positive.
          mask: which lanes read; others get 0.
          exact: whether channels that do not exist must be 0. Otherwise they are arbitrary.
        """
        masks = [and_masks(mask, exists) if exact else mask for exists in self.masks]
        return operand.load(self._moved(addresses, pixels), masks)

    def store(
        self,
        operand: Operand,
        addresses: Sequence[Address],
        pixels: int,
        parts: Sequence[Vector],
        mask: Mask,
    ) -> None:
        """Writes the channels; the arguments of `load`."""
        size = operand.layout.size
        moved = self._moved(addresses, pixels)
        for i, (address, exists) in enumerate(zip(moved, self.masks, strict=True)):
            operand.store(address, parts[i * size : (i + 1) * size], and_masks(mask, exists))

    def _moved(self, addresses: Sequence[Address], pixels: int) -> list[Address]:
        distance = pixels * self.problem.channels
        return [Address(base, offset + distance) for base, offset in addresses]
