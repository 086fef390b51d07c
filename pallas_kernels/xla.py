"""Local relation for every platform that XLA compiles for."""

import jax

from pallas_kernels import reference
from pallas_kernels.spec import Spec


def forward(
    spec: Spec,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """The output and the log of the softmax denominator (None without softmax)."""
    return reference.forward(spec, query, key, value, prior), None


def backward(
    spec: Spec,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
    out: jax.Array,
    normalizer: jax.Array | None,
    d_out: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Gradients of query, key, value and prior."""
    del out, normalizer
    return jax.vjp(lambda *arrays: reference.forward(spec, *arrays), query, key, value, prior)[1](
        d_out
    )
