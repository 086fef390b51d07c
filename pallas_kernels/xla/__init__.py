"""Local relation for every platform that XLA compiles for: lean in memory, with its own backward.

One image and one block of output rows at a time, so temporary memory does not grow with the
batch and stays in cache; weights are computed again in the backward pass, never saved.

XLA:CPU fuses greedily: it would compute each maximum and each exponential again inside every
consumer, and it drops optimisation barriers before it fuses. So on a CPU each stage is a call that
is not inlined. Elsewhere the same stages are plain functions, which is what those compilers want.
"""

import functools

import jax

from pallas_kernels.platform_switch import by_platform
from pallas_kernels.spec import Spec
from pallas_kernels.xla import backward_pass, forward_pass
from pallas_kernels.xla.stages import Plan

Normalizer = tuple[jax.Array, jax.Array]

# Query elements (pixels times groups) of a row block. CPU: the block's weights stay in the second
# and third level caches, and the loops are long enough to fill vectors; measured on LR-Net shapes.
# Elsewhere: few large steps, since each one is a kernel launch.
CPU_FORWARD = Plan(block=20_000, isolate=True)
CPU_BACKWARD = Plan(block=10_000, isolate=True)
DEFAULT = Plan(block=500_000, isolate=False)


def forward(
    spec: Spec,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
) -> tuple[jax.Array, Normalizer | None]:
    """The output, and what the backward pass needs to compute the weights again.

    Args:
      spec: the static options.
      query: (B, Ho, Wo, G, D).
      key: (B, H, W, G, D).
      value: (B, H, W, C).
      prior: (G, Kh, Kw) or None.

    Returns:
      out: (B, Ho, Wo, C) in value.dtype.
      normalizer: None without softmax, else two (B, Ho, Wo, G) arrays (shift, factor) in the
        compute dtype with weight = exp(logit - shift) * factor. The log of the softmax denominator
        alone would not do: next to a logit of 1e6 its last bit in float32 is worth 6 % of a weight.
    """
    arrays = (query, key, value) if prior is None else (query, key, value, prior)
    out, *normalizer = _forward(spec)(*arrays)
    return out, (normalizer[0], normalizer[1]) if normalizer else None


def backward(
    spec: Spec,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
    out: jax.Array,
    normalizer: Normalizer | None,
    d_out: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Gradients of query, key, value and prior, each in the dtype of its array."""
    arrays = [query, key, value, out, d_out, *(normalizer or ())]
    if prior is not None:
        arrays.append(prior)
    d_query, d_key, d_value, *d_prior = _backward(spec, prior is not None)(*arrays)
    return d_query, d_key, d_value, d_prior[0] if d_prior else None


# Cached, because traced programs are shared by the identity of the function: all layers of one
# shape are traced and lowered once.
@functools.cache
def _forward(spec: Spec) -> forward_pass.Function:
    def run(plan: Plan) -> forward_pass.Function:
        return jax.jit(functools.partial(forward_pass.run, spec, plan))

    return by_platform(default=run(DEFAULT), cpu=run(CPU_FORWARD))


@functools.cache
def _backward(spec: Spec, has_prior: bool) -> backward_pass.Function:
    def run(plan: Plan) -> backward_pass.Function:
        return jax.jit(functools.partial(backward_pass.run, spec, has_prior, plan))

    return by_platform(default=run(DEFAULT), cpu=run(CPU_BACKWARD))
