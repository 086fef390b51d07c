"""The geometric prior in memory, and how lanes read it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.pallas.lanes.memory import base_address, deinterleave, load, span
from pallas_kernels.pallas.lanes.vectors import Mask, Ref, Scalar, Vector, Vectors
from pallas_kernels.pallas.problem import LOG2E, Problem

ACCESS = 4
"""Priors per memory access: 16 bytes."""


def padded(kw: int) -> int:
    """Numbers in memory for a window row of `kw` taps."""
    return -(-kw // ACCESS) * ACCESS


def prior_table(problem: Problem, prior: jax.Array | None) -> jax.Array | None:
    """The prior as the kernels read it: (2, Kh + 1, G, Kw padded), float32, flat.

    The first half is in units of log 2, the second half in natural units. The extra window row is
    for rows outside the image. It holds -inf, which makes weights 0. Without softmax it holds 0,
    and values must be masked. Finite numbers stay finite: 3e38 * log2(e) would overflow.
    """
    if prior is None:
        return None
    _, kw = problem.spec.kernel_size
    outside = -math.inf if problem.softmax else 0.0
    natural = jnp.swapaxes(prior.astype(jnp.float32), 0, 1)  # (Kh, G, Kw)
    natural = jnp.pad(natural, ((0, 0), (0, 0), (0, padded(kw) - kw)))
    natural = jnp.pad(natural, ((0, 1), (0, 0), (0, 0)), constant_values=outside)
    limit = float(np.finfo(np.float32).max)
    in_log2 = jnp.where(jnp.isinf(natural), natural, jnp.clip(natural * LOG2E, -limit, limit))
    return jnp.stack([in_log2, natural]).reshape(-1)


@dataclasses.dataclass(frozen=True)
class Priors:
    """The prior of a kernel.

    Attributes:
      problem: the problem.
      ref: what `prior_table` returned, None without a prior.
    """

    problem: Problem
    ref: Ref | None

    def load(self, fast: bool, row: Scalar | Vector, group: Vector, valid: Vector) -> Vectors:
        """Reads the Kw priors of a window row.

        Args:
          fast: whether logits are those of `LogitMath.fast`.
          row: of the window.
          group: of each lane.
          valid: whether the row is in the image. Where not, priors make the weights 0.
        """
        kh, kw = self.problem.spec.kernel_size
        if self.ref is None:
            prior = jnp.where(valid, 0.0, -math.inf if self.problem.softmax else 0.0)
            return [prior] * kw
        row = jnp.where(valid, row, kh) + (0 if fast and self.problem.softmax else kh + 1)
        last = padded(kw) - ACCESS
        base = base_address((row * self.problem.groups + group) * padded(kw) + last, ACCESS)
        vectors = [load(self.ref, span(base, i - last, ACCESS)) for i in range(0, kw, ACCESS)]
        return [prior for vector in vectors for prior in deinterleave(vector)][:kw]

    def masked(self, prior: Vector, mask: Mask) -> Vector:
        """A prior that makes the weight 0 where the key or the query does not exist."""
        if mask is None or self.problem.distance_masks or not self.problem.softmax:
            return prior
        return jnp.where(mask, prior, -jnp.inf)
