"""Forward pass of the XLA path.

A row block is R output rows. Its arrays keep (column, group) as one axis of N = Wo * G elements,
so that groups and columns fill vectors together, and a step to the next column is a shift by G.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.spec import Spec, compute_dtype
from pallas_kernels.xla.stages import (
    Plan,
    combine,
    over_images,
    overhang,
    pad_channels,
    pad_image,
    scaled_phi,
    shift,
)

Function = Callable[..., Sequence[jax.Array]]


def run(
    spec: Spec,
    plan: Plan,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """(out,) or, with softmax, (out, shift, factor): see `xla.forward`."""
    dtype = compute_dtype(query, key, value, prior)
    _, height, width, channels = value.shape
    _, ho, wo, groups, depth = query.shape
    kh, s, m = spec.kernel_size[0], spec.stride, spec.channels_per_group
    softmax = spec.normalization == "softmax"
    n = wo * groups
    rows, blocks = plan.rows(ho, n)
    slab = (rows - 1) * s + (kh - 1) * spec.dilation + 1  # input rows that a block reads
    wq = wo + overhang(spec)[1]
    hp, wp = (blocks - 1) * rows * s + slab, wq * s
    bias = _bias(spec, prior, width, wo, groups, dtype)

    def image(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, ...]:
        q = jnp.moveaxis(query.astype(dtype), -1, 0).reshape(depth, ho, n)
        q = jnp.pad(q, ((0, 0), (0, blocks * rows - ho), (0, 0)))
        k = pad_image(spec, key.astype(dtype), hp, wp)
        k = k.reshape(hp, wq, s, groups, depth).transpose(4, 2, 0, 1, 3)
        k = k.reshape(depth, s, hp, wq * groups)  # column phases apart
        v = pad_image(spec, pad_channels(spec, value.astype(dtype)), hp, wp)
        v = v.reshape(hp, wp, groups, m)

        def block(i: jax.Array | int) -> tuple[jax.Array, ...]:
            y = i * rows
            q_block = lax.dynamic_slice_in_dim(q, y, rows, 1)
            k_slab = lax.dynamic_slice_in_dim(k, y * s, slab, 2)
            v_slab = lax.dynamic_slice_in_dim(v, y * s, slab, 0)
            row = y * s + jnp.arange(slab) - spec.padding[0]
            row_bias = jnp.where((row >= 0) & (row < height), 0, -jnp.inf).astype(dtype)

            columns = plan.stage(_columns, spec, groups, n)(k_slab)
            logits = [
                plan.stage(_logits, spec, a)(q_block, columns, bias, row_bias) for a in range(kh)
            ]
            if not softmax:
                out = plan.stage(_aggregate, spec, rows, wo)(v_slab, *logits)
                return (out.astype(value.dtype),)
            largest = plan.stage(_largest)(*logits)
            weights = [plan.stage(_exponential)(x, largest) for x in logits]
            factor = plan.stage(_factor)(*weights)
            out = plan.stage(_aggregate_softmax, spec, rows, wo)(v_slab, factor, *weights)
            return out.astype(value.dtype), largest, factor

        if blocks == 1:
            out, *normalizer = block(0)
        else:
            out, *normalizer = lax.map(block, jnp.arange(blocks))
        out = out.reshape(blocks * rows, wo, groups * m)[:ho, :, :channels]
        return out, *(x.reshape(blocks * rows, wo, groups)[:ho] for x in normalizer)

    return tuple(over_images(image, (query, key, value)))


def _bias(
    spec: Spec,
    prior: jax.Array | None,
    width: int,
    wo: int,
    groups: int,
    dtype: jnp.dtype,
) -> jax.Array:
    """(Kh, Kw, N) added to the logits: the prior, and -inf where a tap leaves the image sideways.

    Without softmax no mask is needed: a weight beyond the border meets a value of zero.
    """
    kh, kw = spec.kernel_size
    bias = jnp.zeros((kh, kw, 1, groups), dtype)
    if prior is not None:
        bias = jnp.moveaxis(prior.astype(dtype), 0, 2)[:, :, None]
    bias = jnp.broadcast_to(bias, (kh, kw, wo, groups))
    if spec.normalization == "softmax":
        column = jnp.arange(wo) * spec.stride - spec.padding[1]
        column = column + spec.dilation * jnp.arange(kw)[:, None]  # (Kw,Wo)
        inside = (column >= 0) & (column < width)
        bias = jnp.where(inside[:, :, None], bias, -jnp.inf)
    return bias.reshape(kh, kw, wo * groups)


def _columns(spec: Spec, groups: int, n: int, k: jax.Array) -> jax.Array:
    """Keys shifted by each tap's column: (D, stride, slab, Wq*G) -> (D, slab, Kw, N)."""
    taps = []
    for b in range(spec.kernel_size[1]):
        phase, steps = shift(spec, b)
        taps.append(k[:, phase, :, steps * groups : steps * groups + n])
    return jnp.stack(taps, axis=2)


def _logits(
    spec: Spec, a: int, q: jax.Array, k: jax.Array, bias: jax.Array, row_bias: jax.Array
) -> jax.Array:
    """Logits of window row a: (R, Kw, N)."""
    first = a * spec.dilation
    rows = slice(first, first + (q.shape[1] - 1) * spec.stride + 1, spec.stride)
    logits = scaled_phi(spec, [*q[:, :, None]], [*k[:, rows]]) + bias[a]
    if spec.normalization == "none":
        return logits
    return logits + row_bias[rows][:, None, None]  # a select takes longer


def _taps(rows: Sequence[jax.Array]) -> list[jax.Array]:
    return [row[:, b] for row in rows for b in range(row.shape[1])]


def _largest(*logits: jax.Array) -> jax.Array:
    return combine(_taps(logits), jnp.maximum)


def _exponential(logits: jax.Array, largest: jax.Array) -> jax.Array:
    return jnp.exp(logits - largest[:, None])


def _factor(*weights: jax.Array) -> jax.Array:
    return 1 / combine(_taps(weights))


def _aggregate(spec: Spec, rows: int, wo: int, v: jax.Array, *weights: jax.Array) -> jax.Array:
    """(R, Wo, G, M) from values (slab, Wp, G, M) and weights (R, Kw, N) per window row."""
    kh, kw = spec.kernel_size
    d, s = spec.dilation, spec.stride
    terms = []
    for a in range(kh):
        for b in range(kw):
            w = weights[a][:, b].reshape(rows, wo, -1, 1)
            y, x = a * d, b * d
            terms.append(w * v[y : y + (rows - 1) * s + 1 : s, x : x + (wo - 1) * s + 1 : s])
    return combine(terms)


def _aggregate_softmax(
    spec: Spec, rows: int, wo: int, v: jax.Array, factor: jax.Array, *weights: jax.Array
) -> jax.Array:
    return _aggregate(spec, rows, wo, v, *weights) * factor.reshape(rows, wo, -1, 1)
