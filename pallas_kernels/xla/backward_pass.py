"""Backward pass of the XLA path.

With e = exp(logit - shift), weight w = e * factor, and g the gradient of the output:

    d_logit[p, t] = w[p, t] * ( sum over c of g[p, c] * (value[p + t, c] - out[p, c]) )
                  = e[p, t] * sum over c of u[p, c] * x[p + t, c]

where u = factor * g and x = value, each with one channel more: u gets -factor * (g . out), x gets
1 inside the image and 0 outside. So u is scaled once a pixel, not once a tap, and taps outside
the image drop out without a mask. Without softmax u = g, x = value, and e is the logit.

An output rounded to bfloat16 would make g . out the largest error of all (2.6 times the rounding of
the result, measured on d_query): then it is summed over the taps in a pass of its own.

Layout: channels first, then (row, column, group) as ONE axis in which a tap is a shift. A row has
Wq columns: Wo outputs, then a gap as wide as a window reaches; it is the right border of its row
and the left border of the next. A block of R rows has N = R * Wq * G elements; F elements in front
hold the gap before its first row, and sources need F behind.
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

# Sums over the channels of a group are written out up to this many, 16 and one for the border.
WRITTEN_OUT = 17


def run(spec: Spec, has_prior: bool, plan: Plan, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Gradients of query, key, value and, if there is one, prior.

    Args:
      spec: the static options.
      has_prior: whether a prior comes last.
      plan: how to cut the work.
      *arrays: query, key, value, out, d_out, then shift and factor with softmax, then the prior.
    """
    prior = arrays[-1] if has_prior else None
    batched = arrays[:-1] if has_prior else arrays
    query, key, value, *_ = batched
    dtype = compute_dtype(query, key, value, prior)
    groups = query.shape[3]
    bias = jnp.zeros((groups, *spec.kernel_size), dtype) if prior is None else prior.astype(dtype)

    def image(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return _image(spec, plan, bias, *arrays)

    d_query, d_key, d_value, d_bias = over_images(image, batched)
    if prior is None:
        return d_query, d_key, d_value
    return d_query, d_key, d_value, d_bias.sum(0).astype(prior.dtype)


def _image(
    spec: Spec,
    plan: Plan,
    bias: jax.Array,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    out: jax.Array,
    d_out: jax.Array,
    *normalizer: jax.Array,
) -> tuple[jax.Array, ...]:
    """Gradients of one image; arrays without the batch axis."""
    dtype = bias.dtype
    exact_out = out.dtype == dtype
    height, width, channels = value.shape
    ho, wo, groups, depth = query.shape
    (kh, kw), s, m = spec.kernel_size, spec.stride, spec.channels_per_group
    over_h, over_w = overhang(spec)
    wq = wo + over_w
    row = wq * groups
    front = over_w * groups
    rows, blocks = plan.rows(ho, row)
    hq = blocks * rows + over_h
    n = rows * row
    total = front + n  # elements of a block's targets; its sources have front more

    def targets(x: jax.Array) -> jax.Array:
        """(L,Ho,Wo,G) -> (L, F + blocks*N): zeros in the gaps, in front, in rows to spare."""
        x = jnp.pad(x, ((0, 0), (0, blocks * rows - ho), (0, over_w), (0, 0)))
        return jnp.pad(x.reshape(x.shape[0], -1), ((0, 0), (front, 0)))

    def sources(x: jax.Array) -> jax.Array:
        """(L,H,W,G) -> (row phase, column phase, L, F + Hq*Wq*G + F)."""
        x = pad_image(spec, x, hq * s, wq * s, axis=1)
        phases = [[x[:, y::s, z::s].reshape(x.shape[0], -1) for z in range(s)] for y in range(s)]
        x = jnp.stack([jnp.stack(of_row) for of_row in phases])
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (front, front)))

    # Channels go first before any padding: transposing a padded array is several times slower.
    q = targets(jnp.moveaxis(query.astype(dtype), -1, 0))
    k = sources(jnp.moveaxis(key.astype(dtype), -1, 0))
    u = _channels_first(spec, d_out.astype(dtype))
    x = _channels_first(spec, value.astype(dtype))
    if normalizer:
        largest, factor = normalizer
        if exact_out:
            dot = _over_channels(u * _channels_first(spec, out))
        else:
            dot = jnp.zeros_like(factor)
        u = jnp.concatenate([u, -dot[None]]) * factor
        x = jnp.concatenate([x, jnp.ones_like(x[:1])])
        largest, factor = targets(largest[None]), targets(factor[None])
    u, x = targets(u), sources(x)

    bias = jnp.broadcast_to(jnp.moveaxis(bias, 0, 2)[:, :, None], (kh, kw, wq, groups))
    bias = jnp.tile(bias.reshape(kh, kw, row), (1, 1, rows))
    bias = jnp.pad(bias, ((0, 0), (0, 0), (front, 0)))

    def block(i: jax.Array, totals: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        start = i * n
        q_block, u_block = (lax.dynamic_slice_in_dim(a, start, total, 1) for a in (q, u))
        shifts = [lax.dynamic_slice_in_dim(largest, start, total, 1)[0]] if normalizer else []

        def read(a: jax.Array) -> tuple[tuple, jax.Array, jax.Array, jax.Array]:
            """What window row a reads: its place in the sources, keys, values, and e."""
            phase, steps = shift(spec, a)
            place = (phase, 0, 0, start + steps * row)
            k_row, x_row = (
                lax.dynamic_slice(z, place, (1, s, z.shape[2], total + front))[0] for z in (k, x)
            )
            bias_row = lax.dynamic_index_in_dim(bias, a, keepdims=False)
            e = plan.stage(_weights, spec, groups)(q_block, k_row, bias_row, *shifts)
            return place, k_row, x_row, e

        if normalizer and not exact_out:

            def add_dot(a: jax.Array, dot: jax.Array) -> jax.Array:
                _, _, x_row, e = read(a)
                return dot + plan.stage(_d_logits, spec, groups)(e, u_block, x_row).sum(0)

            dot = lax.fori_loop(0, kh, add_dot, jnp.zeros((total,), dtype))
            dot = dot * lax.dynamic_slice_in_dim(factor, start, total, 1)[0]
            u_block = u_block.at[-1].set(-dot)

        def window_row(a: jax.Array, totals: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            d_q_block, d_k, d_x, d_bias = totals
            place, k_row, x_row, e = read(a)
            d_logits = plan.stage(_d_logits, spec, groups)(e, u_block, x_row)
            d_q_row = plan.stage(_d_query, spec, groups)(d_logits, q_block, k_row)
            d_k_row = plan.stage(_d_key, spec, groups, front)(d_logits, q_block, k_row)
            d_x_row = plan.stage(_d_value, spec, groups, front)(e, u_block)
            d_bias_row = plan.stage(_d_bias, rows, front)(d_logits)
            return (
                d_q_block + d_q_row,
                _add_at(d_k, d_k_row[None], place),
                _add_at(d_x, d_x_row[None], place),
                _add_at(d_bias, d_bias_row[None], (a, 0, 0)),
            )

        d_q, *rest = totals
        d_q_block, *rest = lax.fori_loop(0, kh, window_row, (jnp.zeros_like(q_block), *rest))
        d_q = lax.dynamic_update_slice(d_q, d_q_block[:, front:], (0, start))
        return d_q, *rest

    sums = (
        (depth, blocks * n),
        (s, s, depth, hq * row),
        (s, s, m, hq * row),
        (kh, kw, row),
    )
    d_q, d_k, d_x, d_bias = lax.fori_loop(
        0, blocks, block, tuple(jnp.zeros(shape, dtype) for shape in sums)
    )

    def from_sources(x: jax.Array) -> jax.Array:
        """(row phase, column phase, L, Hq*Wq*G) -> (H,W,G,L)."""
        x = x.reshape(s, s, -1, hq, wq, groups).transpose(3, 0, 4, 1, 5, 2)
        x = x.reshape(hq * s, wq * s, groups, -1)
        ph, pw = spec.padding
        # Where a stride exceeds the window, input that no tap reads was cropped.
        x = x[ph : ph + height, pw : pw + width]
        return jnp.pad(x, ((0, height - x.shape[0]), (0, width - x.shape[1]), (0, 0), (0, 0)))

    d_q = jnp.moveaxis(d_q.reshape(depth, blocks * rows, wq, groups)[:, :ho, :wo], 0, -1)
    d_value = from_sources(d_x).reshape(height, width, groups * m)[..., :channels]
    d_bias = d_bias.reshape(kh, kw, wq, groups)[:, :, :wo].sum(2)
    return (
        d_q.astype(query.dtype),
        from_sources(d_k).astype(key.dtype),
        d_value.astype(value.dtype),
        jnp.moveaxis(d_bias, 2, 0),
    )


def _channels_first(spec: Spec, x: jax.Array) -> jax.Array:
    """(H,W,C) -> (M,H,W,G)."""
    x = pad_channels(spec, x)
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, spec.channels_per_group), -1, 0)


def _over_channels(products: jax.Array) -> jax.Array:
    """Sums (L, ...) over L, written out where L is small: XLA:CPU does not vectorise reductions."""
    if products.shape[0] <= WRITTEN_OUT:
        return combine([*products], chains=2)
    return products.sum(0)


def _add_at(total: jax.Array, part: jax.Array, place: tuple) -> jax.Array:
    part = lax.dynamic_slice(total, place, part.shape) + part
    return lax.dynamic_update_slice(total, part, place)


def _sources_of(spec: Spec, groups: int, b: int, x: jax.Array, total: int) -> jax.Array:
    """What tap b of every target reads: (stride, L, T+F) -> (L, T)."""
    phase, steps = shift(spec, b)
    return x[phase, :, steps * groups : steps * groups + total]


def _weights(
    spec: Spec, groups: int, q: jax.Array, k: jax.Array, bias: jax.Array, *largest: jax.Array
) -> jax.Array:
    """The factors e of one window row: (Kw, T).

    Capped at 1, which every tap inside the image keeps anyway: outside it the logit may exceed the
    largest one, and infinity times the zero in x would be NaN.
    """
    weights = []
    for b in range(spec.kernel_size[1]):
        keys = _sources_of(spec, groups, b, k, q.shape[1])
        logits = scaled_phi(spec, [*q], [*keys]) + bias[b]
        weights.append(jnp.exp(jnp.minimum(logits - largest[0], 0)) if largest else logits)
    return jnp.stack(weights)


def _d_logits(spec: Spec, groups: int, e: jax.Array, u: jax.Array, x: jax.Array) -> jax.Array:
    """(Kw, T) from e (Kw, T), u (M+1, T) and x (stride, M+1, T+F)."""
    taps = []
    for b in range(spec.kernel_size[1]):
        values = _sources_of(spec, groups, b, x, u.shape[1])
        dot = _over_channels(u * values)
        taps.append(dot if spec.normalization == "none" else e[b] * dot)
    return jnp.stack(taps)


def _d_query(spec: Spec, groups: int, d_logits: jax.Array, q: jax.Array, k: jax.Array) -> jax.Array:
    """(D, T), this window row's part."""
    total = q.shape[1]
    parts = []
    for d in range(q.shape[0]):
        terms = []
        for b in range(spec.kernel_size[1]):
            keys = _sources_of(spec, groups, b, k, total)[d]
            _, vjp = jax.vjp(spec.component, q[d], keys)
            terms.append(vjp(d_logits[b])[0])
        parts.append(combine(terms, chains=2))
    return jnp.stack(parts) * spec.scale


def _d_key(
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
                of_phase, steps = shift(spec, b)
                if of_phase == phase:
                    target = slice(front - steps * groups, front - steps * groups + n)
                    _, vjp = jax.vjp(spec.component, q[d, target], k[phase, d, front : front + n])
                    terms.append(vjp(d_logits[b, target])[1])
            parts.append(combine(terms, chains=2))
        phases.append(jnp.stack(parts))
    return jnp.stack(phases) * spec.scale


def _d_value(spec: Spec, groups: int, front: int, e: jax.Array, u: jax.Array) -> jax.Array:
    """(stride, M, N), this window row's part, gathered at each source from its targets."""
    m, n = spec.channels_per_group, e.shape[1] - front
    phases = []
    for phase in range(spec.stride):
        terms = [jnp.zeros((m, n), e.dtype)]
        for b in range(spec.kernel_size[1]):
            of_phase, steps = shift(spec, b)
            if of_phase == phase:
                target = slice(front - steps * groups, front - steps * groups + n)
                terms.append(e[b, target] * u[:m, target])
        phases.append(combine(terms, chains=2))
    return jnp.stack(phases)


def _d_bias(rows: int, front: int, d_logits: jax.Array) -> jax.Array:
    """(Kw, Wq*G): sums over the rows of the block."""
    total = d_logits.shape[1]
    n = (total - front) // rows
    starts = range(front, total, n)
    return combine([d_logits[:, start : start + n] for start in starts], chains=2)
