"""What all strips of a program of the query kernel share."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax

from pallas_kernels.pallas.arithmetic import Alu
from pallas_kernels.pallas.channels import Channels
from pallas_kernels.pallas.lanes import Ref, Scalar, Vector, Vectors
from pallas_kernels.pallas.memory import Operand
from pallas_kernels.pallas.operands import Components, Operands
from pallas_kernels.pallas.output_strip import OutputStrip
from pallas_kernels.pallas.prior_columns import PriorColumns
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.strips import BorderCase, Strips
from pallas_kernels.spec import Normalizer

# The severity of a lane: what its pixels need in the backward pass.
PLAIN = 0  # All shifts are 0 and all factors are moderate: the fast paths of both kernels.
WIDE_FACTOR = 1  # A factor is not moderate: the exact path of the query kernel.
SHIFTED = (
    2  # A shift is not 0, or a fast logit would be imprecise: the exact paths of both kernels.
)


class PixelStats(NamedTuple):
    """What the query kernel leaves for the key kernel.

    Attributes:
      pairs: (factor, -delta) per pixel and group, flat float32.
      severity: the worst one among the output rows whose windows contain a row of keys. There is
        one int32 per image and row of keys, flat.
    """

    pairs: jax.Array
    severity: jax.Array


class Results(NamedTuple):
    """What the kernel writes, flat.

    Attributes:
      d_query: the gradient of the queries.
      pairs: (factor, -delta) per pixel and group, float32; None without softmax.
      severity: per strip and group, int32; None without softmax.
      d_prior: see `PriorColumns`; None without a prior.
    """

    d_query: Ref
    pairs: Ref | None
    severity: Ref | None
    d_prior: Ref | None


@dataclasses.dataclass(frozen=True)
class Program:
    """What all strips of a program share.

    Attributes:
      problem: the problem.
      alu: runs arithmetic.
      operands: the inputs.
      d_out: gradient of the output.
      out: the output; None without softmax.
      normalizer: of the forward pass; None without softmax.
      results: what to write.
      d_query: of these, bound.
      priors: sums of d_prior.
      strips: how programs cover the output.
      cases: border cases of the strips.
      column: number of the column of strips.
      zero: (N,).
    """

    problem: Problem
    alu: Alu
    operands: Operands
    d_out: Operand
    out: Operand | None
    normalizer: Normalizer | None
    results: Results
    d_query: Components
    priors: PriorColumns
    strips: Strips
    cases: Sequence[BorderCase]
    column: jax.Array
    zero: Vector

    def load(self, array: Operand, strip: OutputStrip, chunk: Scalar) -> list[Vectors]:
        """A chunk of the channels of every pixel of a strip."""
        channels = Channels.of(self.problem, strip.origin.unit, chunk)
        addresses = channels.addresses(array, strip.last_pixel)
        return [
            channels.load(array, addresses, strip.from_last(i), strip.store_mask[i])
            for i in range(strip.count)
        ]
