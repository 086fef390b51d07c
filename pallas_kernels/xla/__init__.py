"""Local relation for every platform that XLA compiles for: lean in memory, with its own backward.

One image and one block of output rows is worked on at a time. So temporary memory does not grow
with the batch and fits the cache. The backward pass computes the weights again; they are never
saved.

XLA:CPU fuses greedily. It would compute each maximum and each exponential again inside every
consumer, and it drops optimisation barriers before it fuses. So on a CPU each stage is a call that
is not inlined. Elsewhere the same stages are plain functions, which suits those compilers.
"""

import functools

import jax

from pallas_kernels.platform_switch import PyTreeFunction, by_platform
from pallas_kernels.spec import (
    Inputs,
    Normalizer,
    Residuals,
    Spec,
    backward_shapes,
    forward_shapes,
)
from pallas_kernels.xla import backward_pass, forward_pass
from pallas_kernels.xla.stages import Plan

DESCRIPTION = "compiled by XLA: every platform, dtype and option"

# Query elements (pixels times groups) of a row block. On a CPU the block's weights fit the second
# and third level caches, and the loops are long enough to fill vectors; this was measured on the
# shapes of LR-Net. Elsewhere a few large steps are best, since each one is a kernel launch.
CPU_FORWARD = Plan(block=20_000, isolate=True)
CPU_BACKWARD = Plan(block=10_000, isolate=True)
DEFAULT = Plan(block=500_000, isolate=False)


def unsupported(spec: Spec, inputs: Inputs) -> str | None:
    """None: it runs every problem."""
    del spec, inputs
    return None


def unavailable() -> str | None:
    """None: it runs on every machine."""
    return None


def forward(spec: Spec, inputs: Inputs) -> tuple[jax.Array, Normalizer | None]:
    """The output, and the normaliser for the backward pass in the compute dtype."""
    return _forward(spec)(inputs)


def backward(spec: Spec, residuals: Residuals, d_out: jax.Array) -> Inputs:
    """The gradients of the inputs, each in the dtype of its array."""
    return _backward(spec)(residuals, d_out)


# Cached because JAX shares traced programs by the identity of the function. So all layers of one
# shape are traced and lowered once.
@functools.cache
def _forward(spec: Spec) -> PyTreeFunction:
    def with_plan(plan: Plan) -> PyTreeFunction:
        return jax.jit(functools.partial(forward_pass.run, plan, spec))

    shapes = functools.partial(forward_shapes, spec)
    return by_platform(with_plan(DEFAULT), shapes=shapes, cpu=with_plan(CPU_FORWARD))


@functools.cache
def _backward(spec: Spec) -> PyTreeFunction:
    def with_plan(plan: Plan) -> PyTreeFunction:
        return jax.jit(functools.partial(backward_pass.run, plan, spec))

    shapes = functools.partial(backward_shapes, spec)
    return by_platform(with_plan(DEFAULT), shapes=shapes, cpu=with_plan(CPU_BACKWARD))
