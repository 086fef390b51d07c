"""Backward pass of the XLA path.

With e = exp(logit - shift), weight w = e * factor, and g the gradient of the output:

    d_logit[p, t] = w[p, t] * ( sum over c of g[p, c] * (value[p + t, c] - out[p, c]) )
                  = e[p, t] * sum over c of u[p, c] * x[p + t, c]

where u = factor * g and x = value, each with one more channel: that of u is -factor * (g . out),
that of x is 1 inside the image and 0 outside. So u is scaled once a pixel, not once a tap, and taps
outside the image drop out without a mask. Without softmax u = g, x = value, and e is the logit.

If the output was rounded to bfloat16, g . out would be the largest error of all: 2.6 times the
rounding of the result, measured on d_query. Then a pass of its own sums g . out over the taps.

layout.py says how (row, column, group) become one axis, and what F and N are.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.spec import Inputs, Residuals, Spec, compute_dtype
from pallas_kernels.xla import backward_stages
from pallas_kernels.xla.geometry import Geometry
from pallas_kernels.xla.layout import Layout
from pallas_kernels.xla.stages import Plan, over_images, pad_channels, phase_and_steps


def run(plan: Plan, spec: Spec, residuals: Residuals, d_out: jax.Array) -> Inputs:
    """The gradients of the inputs (see `xla.backward`), with the work cut by a plan."""
    inputs = residuals.inputs
    dtype, prior = compute_dtype(*inputs), inputs.prior
    layout = Layout(Geometry.of(spec, plan, inputs, gaps=True))
    zeros = (layout.geometry.groups, *spec.kernel_size)
    bias = jnp.zeros(zeros, dtype) if prior is None else prior.astype(dtype)
    batched = residuals._replace(inputs=inputs._replace(prior=None))
    image = functools.partial(_image, layout, plan, bias)
    gradients = over_images(lambda arrays: image(*arrays), (batched, d_out))
    if prior is None:
        return gradients._replace(prior=None)
    return gradients._replace(prior=gradients.prior.sum(0).astype(prior.dtype))


class _Arrays(NamedTuple):
    """What the blocks of one image read, in the compute dtype.

    Attributes:
      q: (D, F + blocks*N), targets.
      k: (stride, stride, D, F + Hq*Wq*G + F), sources.
      u: (M+1, F + blocks*N) targets, the u of the module's equation; M without softmax.
      x: (stride, stride, M+1, F + Hq*Wq*G + F), sources; M without softmax.
      bias: (Kh, Kw, F + N), the prior for every target of a block.
      shift: (F + blocks*N,) of the normaliser; None without softmax.
      factor: likewise, where g . out must be summed over the taps; None elsewhere.
    """

    q: jax.Array
    k: jax.Array
    u: jax.Array
    x: jax.Array
    bias: jax.Array
    shift: jax.Array | None
    factor: jax.Array | None


class _Sums(NamedTuple):
    """Gradients in the layouts of the arrays that they belong to, but without F elements around."""

    q: jax.Array
    k: jax.Array
    x: jax.Array
    bias: jax.Array


def _image(
    layout: Layout, plan: Plan, bias: jax.Array, residuals: Residuals, d_out: jax.Array
) -> Inputs:
    """Gradients of one image; arrays without the batch axis."""
    geometry, inputs = layout.geometry, residuals.inputs
    spec, (_, wo) = geometry.spec, geometry.out_size
    arrays = _prepare(layout, bias, residuals, d_out)
    (kh, kw), s, sources = spec.kernel_size, spec.stride, layout.source_rows * layout.row
    zeros = _Sums(
        jnp.zeros((geometry.depth, geometry.blocks * layout.n), bias.dtype),
        jnp.zeros((s, s, geometry.depth, sources), bias.dtype),
        jnp.zeros((s, s, spec.channels_per_group, sources), bias.dtype),
        jnp.zeros((kh, kw, layout.row), bias.dtype),
    )
    block = functools.partial(_add_block, layout, plan, arrays)
    sums = lax.fori_loop(0, geometry.blocks, block, zeros)
    d_query = layout.from_targets(sums.q)
    d_value = layout.from_sources(sums.x).reshape(*inputs.value.shape[:2], -1)
    d_bias = sums.bias.reshape(kh, kw, -1, geometry.groups)[:, :, :wo].sum(2)
    return Inputs(
        d_query.astype(inputs.query.dtype),
        layout.from_sources(sums.k).astype(inputs.key.dtype),
        d_value[..., : geometry.channels].astype(inputs.value.dtype),
        jnp.moveaxis(d_bias, 2, 0),
    )


def _prepare(layout: Layout, bias: jax.Array, residuals: Residuals, d_out: jax.Array) -> _Arrays:
    spec, dtype = layout.geometry.spec, bias.dtype
    query, key, value, _ = residuals.inputs
    # Channels go first before any padding: transposing a padded array is several times slower.
    q = layout.targets(jnp.moveaxis(query.astype(dtype), -1, 0))
    k = layout.sources(jnp.moveaxis(key.astype(dtype), -1, 0))
    u = _channels_first(spec, d_out.astype(dtype))
    x = _channels_first(spec, value.astype(dtype))
    shift = factor = None
    if residuals.normalizer is not None:
        shift, factor = residuals.normalizer
        exact_out = residuals.out.dtype == dtype
        if exact_out:
            dot = backward_stages.over_channels(u * _channels_first(spec, residuals.out))
        else:
            dot = jnp.zeros_like(factor)
        u = jnp.concatenate([u, -dot[None]]) * factor
        x = jnp.concatenate([x, jnp.ones_like(x[:1])])
        shift = layout.targets(shift[None])[0]
        factor = None if exact_out else layout.targets(factor[None])[0]
    u, x = layout.targets(u), layout.sources(x)

    kh, kw, groups = *spec.kernel_size, layout.geometry.groups
    bias = jnp.moveaxis(bias, 0, 2)[:, :, None]
    bias = jnp.broadcast_to(bias, (kh, kw, layout.geometry.columns, groups))
    bias = jnp.tile(bias.reshape(kh, kw, layout.row), (1, 1, layout.geometry.rows))
    bias = jnp.pad(bias, ((0, 0), (0, 0), (layout.front, 0)))
    return _Arrays(q, k, u, x, bias, shift, factor)


class _WindowRow(NamedTuple):
    """What the targets of a block read through one row of their windows.

    Attributes:
      place: where that starts in the sources.
      k: (stride, D, F + N + F).
      x: (stride, M+1, F + N + F); M without softmax.
      e: (Kw, F + N), the factors e.
    """

    place: tuple
    k: jax.Array
    x: jax.Array
    e: jax.Array


class _Block(NamedTuple):
    """One block of targets.

    Attributes:
      layout: of the image.
      plan: how stages are called.
      arrays: of the image.
      start: where the block starts in the axis of all targets.
      q: (D, F + N).
      u: (M+1, F + N); M without softmax.
    """

    layout: Layout
    plan: Plan
    arrays: _Arrays
    start: jax.Array
    q: jax.Array
    u: jax.Array

    def stage(self, function: Callable, *static: object) -> Callable[..., jax.Array]:
        """A stage of this problem."""
        geometry = self.layout.geometry
        return self.plan.stage(function, geometry.spec, geometry.groups, *static)

    def targets(self, x: jax.Array) -> jax.Array:
        """The block's part of an array of all targets."""
        return lax.dynamic_slice_in_dim(x, self.start, self.layout.total, x.ndim - 1)

    def read(self, a: jax.Array) -> _WindowRow:
        """Reads window row a."""
        spec, layout, arrays = self.layout.geometry.spec, self.layout, self.arrays
        phase, steps = phase_and_steps(spec, a)
        place = (phase, 0, 0, self.start + steps * layout.row)
        k, x = (
            lax.dynamic_slice(
                sources, place, (1, spec.stride, sources.shape[2], layout.total + layout.front)
            )[0]
            for sources in (arrays.k, arrays.x)
        )
        bias = lax.dynamic_index_in_dim(arrays.bias, a, keepdims=False)
        shift = [] if arrays.shift is None else [self.targets(arrays.shift)]
        return _WindowRow(place, k, x, self.stage(backward_stages.weights)(self.q, k, bias, *shift))

    def with_dot(self, factor: jax.Array) -> "_Block":
        """The block with g . out in u, summed over the taps."""

        def add(a: jax.Array, dot: jax.Array) -> jax.Array:
            row = self.read(a)
            return dot + self.stage(backward_stages.d_logits)(row.e, self.u, row.x).sum(0)

        kh = self.layout.geometry.spec.kernel_size[0]
        dot = lax.fori_loop(0, kh, add, jnp.zeros((self.layout.total,), factor.dtype))
        return self._replace(u=self.u.at[-1].set(-(dot * self.targets(factor))))

    def add_window_row(self, a: jax.Array, sums: _Sums) -> _Sums:
        """Adds the gradients through window row a; `sums.q` is that of the block."""
        layout, front = self.layout, self.layout.front
        row = self.read(a)
        d_logits = self.stage(backward_stages.d_logits)(row.e, self.u, row.x)
        d_q = self.stage(backward_stages.d_query)(d_logits, self.q, row.k)
        d_k = self.stage(backward_stages.d_key, front)(d_logits, self.q, row.k)
        d_x = self.stage(backward_stages.d_value, front)(row.e, self.u)
        d_bias = self.plan.stage(backward_stages.d_bias, layout.geometry.rows, front)(d_logits)
        return _Sums(
            sums.q + d_q,
            _add_at(sums.k, d_k[None], row.place),
            _add_at(sums.x, d_x[None], row.place),
            _add_at(sums.bias, d_bias[None], (a, 0, 0)),
        )


def _add_block(layout: Layout, plan: Plan, arrays: _Arrays, i: jax.Array, sums: _Sums) -> _Sums:
    """Adds the gradients that block i contributes."""
    start = i * layout.n
    q, u = (lax.dynamic_slice_in_dim(x, start, layout.total, 1) for x in (arrays.q, arrays.u))
    block = _Block(layout, plan, arrays, start, q, u)
    if arrays.factor is not None:
        block = block.with_dot(arrays.factor)
    of_block = sums._replace(q=jnp.zeros_like(q))
    kh = layout.geometry.spec.kernel_size[0]
    of_block = lax.fori_loop(0, kh, block.add_window_row, of_block)
    d_q = lax.dynamic_update_slice(sums.q, of_block.q[:, layout.front :], (0, start))
    return of_block._replace(q=d_q)


def _channels_first(spec: Spec, x: jax.Array) -> jax.Array:
    """(H,W,C) -> (M,H,W,G)."""
    x = pad_channels(spec, x)
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, spec.channels_per_group), -1, 0)


def _add_at(total: jax.Array, part: jax.Array, place: tuple) -> jax.Array:
    part = lax.dynamic_slice(total, place, part.shape) + part
    return lax.dynamic_update_slice(total, part, place)
