"""The logit of a tap and its derivative, in registers."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp

from pallas_kernels.pallas.lanes.arithmetic import Number, Ops
from pallas_kernels.pallas.lanes.vectors import Vector, Vectors
from pallas_kernels.pallas.problem import LOG2E, Problem


@dataclasses.dataclass(frozen=True)
class LogitMath:
    """Logits and their derivatives, in one of two units and precisions.

    One of query and key stays in a lane's registers while the other one streams past. The
    stationary one is prepared once by `stationary`, and only its gradient is accumulated here.

    Fast logits are in units of log 2, so that a weight is 2**logit without a multiplication. Their
    squared difference of 16-bit queries and keys is (a q - a k)^2 with a^2 = scale * log2(e), which
    saves another instruction. Rounding a*q costs |q - k| (|q| + |k|) 2^-23 of the logit, so callers
    check `imprecise`. Exact logits are in natural units and take q - k as it is.

    Attributes:
      problem: the problem.
      fast: which of the two.
      of_key: whether the stationary side is the key instead of the query.
    """

    problem: Problem
    fast: bool
    of_key: bool = False

    @property
    def coefficient(self) -> float:
        """The factor of Phi."""
        return self.problem.spec.scale * (LOG2E if self.fast and self.problem.softmax else 1.0)

    @property
    def prescaled(self) -> bool:
        """Whether query and key are scaled before their difference is squared."""
        return (
            self.fast
            and self.problem.softmax
            and self.problem.spec.similarity == "squared_difference"
            and self.problem.spec.scale > 0
            and all(dtype.itemsize == 2 for dtype in self.problem.dtypes[:2])
        )

    def stationary(self, x: Sequence[Vector]) -> Vectors:
        """Prepares the D components of the side that stays in registers."""
        if self.prescaled:
            return [q * math.sqrt(self.coefficient) for q in x]
        if self.problem.spec.similarity == "multiplication":
            return [q * self.coefficient for q in x]
        return list(x)

    def imprecise(self, stationary: Sequence[Vector]) -> Vectors:
        """Masks, one per component: where rounding a*q may show in 16-bit results, |q| > 64 / a."""
        return [jnp.abs(q) > 64.0 for q in stationary] if self.prescaled else []

    def logit(
        self,
        ops: Ops[Number],
        stationary: Sequence[Number],
        other: Sequence[Number],
        prior: Number,
    ) -> tuple[Number, list[Number]]:
        """Returns the logit and, per component, the slope that `accumulate` needs.

        The slope is the other side for a multiplication, else stationary minus other.
        """
        if self.problem.spec.similarity == "multiplication":
            return ops.dot(stationary, other, prior), list(other)
        if self.prescaled:
            minus = -math.sqrt(self.coefficient)
            slopes = [ops.fma(k, minus, q) for q, k in zip(stationary, other, strict=True)]
            for d in slopes:
                prior = ops.fma(-d, d, prior)
            return prior, slopes
        slopes = [q - k for q, k in zip(stationary, other, strict=True)]
        if self.problem.spec.similarity == "squared_difference":
            total = slopes[0] * slopes[0]
            total = ops.dot(slopes[1:], slopes[1:], total)
        else:
            total = functools.reduce(lambda a, b: a + b, [ops.absolute(d) for d in slopes])
        return ops.fma(total, -self.coefficient, prior), slopes

    def accumulate(
        self, ops: Ops[Number], sums: Sequence[Number], d_logit: Number, slopes: Sequence[Number]
    ) -> list[Number]:
        """Adds one tap to the gradient of the stationary side, but for the factor of `finish`."""
        if self.problem.spec.similarity != "absolute_difference":
            return [ops.fma(d_logit, d, total) for d, total in zip(slopes, sums, strict=True)]
        # Where query and key are equal, JAX's derivative of |query - key| is 1.
        return [
            total + ops.sign_of(d, d_logit, zero_is_positive=not self.of_key)
            for d, total in zip(slopes, sums, strict=True)
        ]

    def finish(self, sums: Sequence[Vector]) -> Vectors:
        """The gradient of the stationary side from the sums of `accumulate`."""
        scale = self.problem.spec.scale
        if self.problem.spec.similarity == "squared_difference":
            factor = -2.0 * scale / (math.sqrt(self.coefficient) if self.prescaled else 1.0)
        else:
            factor = -scale if self.problem.spec.similarity == "absolute_difference" else scale
        return [total * factor for total in sums]
