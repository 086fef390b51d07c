"""Stages of the backward pass for one window row of a block.

T = F + N elements are the targets of a block (layout.py says what F and N are). e, u and x are
those of the equation in backward_pass.py.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.spec import Spec
from pallas_kernels.xla.stages import combine, phase_and_steps, scaled_phi

# Sums over the channels of a group are written out up to this many, 16 and one for the border.
WRITTEN_OUT = 17


def over_channels(products: jax.Array) -> jax.Array:
    """Sums (L, ...) over L, written out where L is small: XLA:CPU does not vectorise reductions."""
    if products.shape[0] <= WRITTEN_OUT:
        return combine([*products], chains=2)
    return products.sum(0)


def sources_of(spec: Spec, groups: int, b: int, x: jax.Array, total: int) -> jax.Array:
    """What tap b of every target reads: (stride, L, T+F) -> (L, T)."""
    phase, steps = phase_and_steps(spec, b)
    return x[phase, :, steps * groups : steps * groups + total]


def weights(
    spec: Spec, groups: int, q: jax.Array, k: jax.Array, bias: jax.Array, *shift: jax.Array
) -> jax.Array:
    """The factors e of one window row: (Kw, T).

    They are capped at 1, which no tap inside the image exceeds. Outside it a logit may exceed the
    shift, and infinity times the zero in x would be NaN.
    """
    factors = []
    for b in range(spec.kernel_size[1]):
        keys = sources_of(spec, groups, b, k, q.shape[1])
        logits = scaled_phi(spec, [*q], [*keys]) + bias[b]
        factors.append(jnp.exp(jnp.minimum(logits - shift[0], 0)) if shift else logits)
    return jnp.stack(factors)


def d_logits(spec: Spec, groups: int, e: jax.Array, u: jax.Array, x: jax.Array) -> jax.Array:
    """(Kw, T) from e (Kw, T), u (M+1, T) and x (stride, M+1, T+F)."""
    taps = []
    for b in range(spec.kernel_size[1]):
        values = sources_of(spec, groups, b, x, u.shape[1])
        dot = over_channels(u * values)
        taps.append(dot if spec.normalization == "none" else e[b] * dot)
    return jnp.stack(taps)


def d_query(spec: Spec, groups: int, d_logits: jax.Array, q: jax.Array, k: jax.Array) -> jax.Array:
    """(D, T), this window row's part."""
    total = q.shape[1]
    parts = []
    for d in range(q.shape[0]):
        terms = []
        for b in range(spec.kernel_size[1]):
            keys = sources_of(spec, groups, b, k, total)[d]
            _, vjp = jax.vjp(spec.component, q[d], keys)
            terms.append(vjp(d_logits[b])[0])
        parts.append(combine(terms, chains=2))
    return jnp.stack(parts) * spec.scale


def d_key(
    spec: Spec, groups: int, front: int, d_logits: jax.Array, q: jax.Array, k: jax.Array
) -> jax.Array:
    """(stride, D, N), this window row's part, gathered at each source from its targets."""
    n = q.shape[1] - front
    phases = []
    for phase in range(spec.stride):
        parts = []
        for d in range(q.shape[0]):
            terms = [jnp.zeros((n,), q.dtype)]
            for b in range(spec.kernel_size[1]):
                of_phase, steps = phase_and_steps(spec, b)
                if of_phase == phase:
                    target = slice(front - steps * groups, front - steps * groups + n)
                    _, vjp = jax.vjp(spec.component, q[d, target], k[phase, d, front : front + n])
                    terms.append(vjp(d_logits[b, target])[1])
            parts.append(combine(terms, chains=2))
        phases.append(jnp.stack(parts))
    return jnp.stack(phases) * spec.scale


def d_value(spec: Spec, groups: int, front: int, e: jax.Array, u: jax.Array) -> jax.Array:
    """(stride, M, N), this window row's part, gathered at each source from its targets."""
    m, n = spec.channels_per_group, e.shape[1] - front
    phases = []
    for phase in range(spec.stride):
        terms = [jnp.zeros((m, n), e.dtype)]
        for b in range(spec.kernel_size[1]):
            of_phase, steps = phase_and_steps(spec, b)
            if of_phase == phase:
                target = slice(front - steps * groups, front - steps * groups + n)
                terms.append(e[b, target] * u[:m, target])
        phases.append(combine(terms, chains=2))
    return jnp.stack(phases)


def d_bias(rows: int, front: int, d_logits: jax.Array) -> jax.Array:
    """(Kw, Wq*G): sums over the rows of the block."""
    total = d_logits.shape[1]
    n = (total - front) // rows
    starts = range(front, total, n)
    return combine([d_logits[:, start : start + n] for start in starts], chains=2)
