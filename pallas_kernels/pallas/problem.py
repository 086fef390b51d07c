"""One local relation as the GPU kernels see it: its static numbers and its logits."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.pallas.arithmetic import dot
from pallas_kernels.spec import Inputs, Spec

LOG2E = 1.0 / math.log(2.0)

Vector = jax.Array  # (N,): one number per lane


@dataclasses.dataclass(frozen=True)
class Problem:
    """Every static number of one local relation.

    Attributes:
      spec: the options.
      batch: B.
      height: H.
      width: W.
      channels: C.
      depth: D.
      has_prior: False for a prior of None.
      dtypes: of query, key and value.
    """

    spec: Spec
    batch: int
    height: int
    width: int
    channels: int
    depth: int
    has_prior: bool
    dtypes: tuple[np.dtype, np.dtype, np.dtype]

    @classmethod
    def of(cls, spec: Spec, inputs: Inputs) -> "Problem":
        """Reads shapes and dtypes from arrays or `jax.ShapeDtypeStruct`s."""
        query, key, value, prior = inputs
        batch, height, width, channels = value.shape
        dtypes = (np.dtype(query.dtype), np.dtype(key.dtype), np.dtype(value.dtype))
        depth = query.shape[-1]
        return cls(spec, batch, height, width, channels, depth, prior is not None, dtypes)

    @property
    def groups(self) -> int:
        """G."""
        return self.spec.groups(self.channels)

    @property
    def out_size(self) -> tuple[int, int]:
        """(Ho, Wo)."""
        return self.spec.output_size(self.height, self.width)

    @property
    def softmax(self) -> bool:
        """Whether weights are normalised."""
        return self.spec.normalization == "softmax"

    @property
    def vector(self) -> int:
        """Channels per memory access.

        At most 16 bytes, and a divisor of C and M: Triton moves anything wider or unaligned through
        shared memory, and a vector must not straddle the end of a group.
        """
        size = 16 // self.dtypes[2].itemsize
        return math.gcd(size, math.gcd(self.channels, self.spec.channels_per_group))

    @property
    def chunk(self) -> int:
        """Channels that a lane holds at a time: M, or 8 of a group that registers cannot hold."""
        return self.spec.channels_per_group if self.spec.channels_per_group <= 16 else 8

    @property
    def chunks(self) -> int:
        """Chunks per group."""
        return -(-self.spec.channels_per_group // self.chunk)

    @property
    def far(self) -> bool:
        """Whether a far away key is a mask: its weight is 0 because Phi falls without bound."""
        return self.softmax and self.spec.similarity != "multiplication" and self.spec.scale > 0

    def far_value(self, dtype: np.dtype) -> float:
        """A key so far from every query that its weight is 0; its logit still fits float32.

        A real difference beyond it would overflow to a logit of -inf in every implementation. 0
        where a far key is no mask; inf for float16, which reaches no further than real keys do.
        """
        if not self.far:
            return 0.0
        if dtype == np.float16:
            return math.inf
        reach = 2e38 / (LOG2E * max(self.spec.scale, 1e-30) * self.depth)
        squared = self.spec.similarity == "squared_difference"
        return min(math.sqrt(reach) if squared else reach, 1e38)


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Logits and their derivatives in the units and to the precision that a loop asks for.

    With `fast`, logits come in units of log 2, so that 2**logit needs no multiplication, and for
    16-bit queries and keys the squared difference is (a q - a k)^2 with a^2 = scale * log2(e): one
    instruction less. Rounding a*q costs |q - k| (|q| + |k|) 2^-23 of the logit, so loops that use
    it check `distrusts`. Without `fast`: natural units, q - k as written.

    Attributes:
      problem: the problem.
      fast: see above.
      of_key: whether the side that stays in registers (`centre`) is the key, not the query.
    """

    problem: Problem
    fast: bool
    of_key: bool = False

    @property
    def coefficient(self) -> float:
        """What multiplies Phi."""
        return self.problem.spec.scale * (LOG2E if self.fast and self.problem.softmax else 1.0)

    @property
    def scaled(self) -> bool:
        """Whether query and key are multiplied before their difference is squared."""
        return (
            self.fast
            and self.problem.softmax
            and self.problem.spec.similarity == "squared_difference"
            and self.problem.spec.scale > 0
            and all(dtype.itemsize == 2 for dtype in self.problem.dtypes[:2])
        )

    def centre(self, x: Sequence[Vector]) -> list[Vector]:
        """Prepares the side (query or key) that stays in registers."""
        if self.scaled:
            return [q * math.sqrt(self.coefficient) for q in x]
        if self.problem.spec.similarity == "multiplication":
            return [q * self.coefficient for q in x]
        return list(x)

    def distrusts(self, centre: Sequence[Vector]) -> list[Vector]:
        """Where rounding in `centre` could show in 16-bit results: |q| > 64 / a."""
        return [jnp.abs(q) > 64.0 for q in centre] if self.scaled else []

    def logit(
        self, ops: Any, centre: Sequence[Any], other: Sequence[Any], prior: Any
    ) -> tuple[Any, list[Any]]:
        """The logit and, per depth, what `accumulate` needs (centre minus other)."""
        if self.problem.spec.similarity == "multiplication":
            return dot(ops, centre, other, prior), list(other)
        if self.scaled:
            minus = -math.sqrt(self.coefficient)
            differences = [ops.fma(k, minus, q) for q, k in zip(centre, other, strict=True)]
            for d in differences:
                prior = ops.fma(-d, d, prior)
            return prior, differences
        differences = [q - k for q, k in zip(centre, other, strict=True)]
        if self.problem.spec.similarity == "squared_difference":
            total = differences[0] * differences[0]
            total = dot(ops, differences[1:], differences[1:], total)
        else:
            total = functools.reduce(lambda a, b: a + b, [ops.absolute(d) for d in differences])
        return ops.fma(total, -self.coefficient, prior), differences

    def accumulate(
        self, ops: Any, sums: Sequence[Any], d_logit: Any, differences: Sequence[Any]
    ) -> list[Any]:
        """Adds the gradient of the centre, short of the constant in `finish`."""
        if self.problem.spec.similarity != "absolute_difference":
            return [ops.fma(d_logit, d, total) for d, total in zip(differences, sums, strict=True)]
        # Where query and key are equal, JAX's derivative of |query - key| is 1.
        return [
            total + ops.sign_of(d, d_logit, zero_is_positive=not self.of_key)
            for d, total in zip(differences, sums, strict=True)
        ]

    def finish(self, total: Vector) -> Vector:
        """The gradient of the centre from what `accumulate` summed."""
        scale = self.problem.spec.scale
        if self.problem.spec.similarity == "squared_difference":
            return total * (-2.0 * scale / (math.sqrt(self.coefficient) if self.scaled else 1.0))
        return total * (-scale if self.problem.spec.similarity == "absolute_difference" else scale)
