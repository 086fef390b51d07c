"""Forward pass of the XLA path.

A row block is R output rows. Its arrays have (column, group) as one axis of N = Wo * G elements.
So groups and columns fill vectors together, and a step to the next column is a shift by G.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.spec import Inputs, Normalizer, Spec, compute_dtype
from pallas_kernels.xla.geometry import Geometry
from pallas_kernels.xla.stages import (
    Plan,
    combine,
    over_images,
    pad_channels,
    pad_image,
    phase_and_steps,
    scaled_phi,
)

Block = tuple[jax.Array, Normalizer | None]


def run(plan: Plan, spec: Spec, inputs: Inputs) -> tuple[jax.Array, Normalizer | None]:
    """The output and the normaliser (see `xla.forward`), with the work cut by a plan."""
    geometry = Geometry.of(spec, plan, inputs, gaps=False)
    bias = _bias(geometry, inputs.prior, compute_dtype(*inputs))
    image = functools.partial(_image, geometry, plan, bias)
    return over_images(image, inputs._replace(prior=None))


def _bias(geometry: Geometry, prior: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
    """(Kh, Kw, N) added to the logits: the prior, and -inf where a tap leaves the image sideways.

    Without softmax no mask is needed: a weight beyond the border meets a value of zero.
    """
    spec, groups, wo = geometry.spec, geometry.groups, geometry.out_size[1]
    kh, kw = spec.kernel_size
    bias = jnp.zeros((kh, kw, 1, groups), dtype)
    if prior is not None:
        bias = jnp.moveaxis(prior.astype(dtype), 0, 2)[:, :, None]
    bias = jnp.broadcast_to(bias, (kh, kw, wo, groups))
    if geometry.softmax:
        column = jnp.arange(wo) * spec.stride - spec.padding[1]
        column = column + spec.dilation * jnp.arange(kw)[:, None]  # (Kw,Wo)
        inside = (column >= 0) & (column < geometry.width)
        bias = jnp.where(inside[:, :, None], bias, -jnp.inf)
    return bias.reshape(kh, kw, wo * groups)


def _image(geometry: Geometry, plan: Plan, bias: jax.Array, inputs: Inputs) -> Block:
    """Output and normaliser of one image; arrays without the batch axis."""
    ho, wo = geometry.out_size
    rows = geometry.blocks * geometry.rows
    arrays = _prepare(geometry, bias, inputs)
    block = functools.partial(_block, geometry, plan, arrays, inputs.value.dtype)
    out, normalizer = (
        block(0) if geometry.blocks == 1 else lax.map(block, jnp.arange(geometry.blocks))
    )
    out = out.reshape(rows, wo, -1)[:ho, :, : geometry.channels]
    return out, jax.tree.map(lambda x: x.reshape(rows, wo, geometry.groups)[:ho], normalizer)


class _Arrays(NamedTuple):
    """What the blocks of one image read, in the compute dtype.

    Attributes:
      q: (D, rows of all blocks, N).
      k: (D, stride, Hp, Wq * G), the phases of columns apart.
      v: (Hp, Wp, G, M).
      bias: (Kh, Kw, N).
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    bias: jax.Array


def _prepare(geometry: Geometry, bias: jax.Array, inputs: Inputs) -> _Arrays:
    spec, groups, dtype = geometry.spec, geometry.groups, bias.dtype
    (ho, wo), wq, s = geometry.out_size, geometry.columns, spec.stride
    rows = geometry.blocks * geometry.rows
    hp, wp = (rows - geometry.rows) * s + _slab(geometry), wq * s
    q = jnp.moveaxis(inputs.query.astype(dtype), -1, 0).reshape(geometry.depth, ho, wo * groups)
    q = jnp.pad(q, ((0, 0), (0, rows - ho), (0, 0)))
    k = pad_image(spec, inputs.key.astype(dtype), hp, wp)
    k = k.reshape(hp, wq, s, groups, geometry.depth).transpose(4, 2, 0, 1, 3)
    k = k.reshape(geometry.depth, s, hp, wq * groups)
    v = pad_image(spec, pad_channels(spec, inputs.value.astype(dtype)), hp, wp)
    v = v.reshape(hp, wp, groups, spec.channels_per_group)
    return _Arrays(q, k, v, bias)


def _slab(geometry: Geometry) -> int:
    """How many input rows a block reads."""
    spec = geometry.spec
    return (geometry.rows - 1) * spec.stride + (spec.kernel_size[0] - 1) * spec.dilation + 1


def _block(
    geometry: Geometry, plan: Plan, arrays: _Arrays, out_dtype: jnp.dtype, i: jax.Array | int
) -> Block:
    """(R, Wo, G, M) outputs of block i, and the normaliser of its pixels, (R, N) each."""
    spec, (_, wo), rows, slab = geometry.spec, geometry.out_size, geometry.rows, _slab(geometry)
    dtype = arrays.bias.dtype
    y = i * rows
    q = lax.dynamic_slice_in_dim(arrays.q, y, rows, 1)
    k = lax.dynamic_slice_in_dim(arrays.k, y * spec.stride, slab, 2)
    v = lax.dynamic_slice_in_dim(arrays.v, y * spec.stride, slab, 0)
    row = y * spec.stride + jnp.arange(slab) - spec.padding[0]
    row_bias = jnp.where((row >= 0) & (row < geometry.height), 0, -jnp.inf).astype(dtype)

    columns = plan.stage(_columns, spec, geometry.groups, wo * geometry.groups)(k)
    logits = [
        plan.stage(_logits, spec, a)(q, columns, arrays.bias, row_bias)
        for a in range(spec.kernel_size[0])
    ]
    if not geometry.softmax:
        out = plan.stage(_aggregate, spec, rows, wo)(v, *logits)
        return out.astype(out_dtype), None
    shift = plan.stage(_maximum)(*logits)
    weights = [plan.stage(_exponential)(x, shift) for x in logits]
    factor = plan.stage(_factor)(*weights)
    out = plan.stage(_aggregate_softmax, spec, rows, wo)(v, factor, *weights)
    return out.astype(out_dtype), Normalizer(shift, factor)


def _columns(spec: Spec, groups: int, n: int, k: jax.Array) -> jax.Array:
    """Keys shifted by each tap's column: (D, stride, slab, Wq*G) -> (D, slab, Kw, N)."""
    taps = []
    for b in range(spec.kernel_size[1]):
        phase, steps = phase_and_steps(spec, b)
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


def _maximum(*logits: jax.Array) -> jax.Array:
    return combine(_taps(logits), jnp.maximum)


def _exponential(logits: jax.Array, shift: jax.Array) -> jax.Array:
    return jnp.exp(logits - shift[:, None])


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
