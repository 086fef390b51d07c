"""How the kernels are called: arrays, plans and results."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.jax_triton import kept, stack
from pallas_kernels.jax_triton.plan import LOG2E, Plan
from pallas_kernels.pallas import tiling
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.tiling import Tile
from pallas_kernels.platform_switch import multiplies_pairs
from pallas_kernels.spec import Inputs, Normalizer, Residuals, Spec

NAME = "jax_triton"  # among the implementations


class PixelStats(NamedTuple):
    """What the query kernel stores for the key kernel.

    Attributes:
      pairs: (B, Ho, Wo, G, 2) float32: factor and -delta.
      severity: (B, H) int32: whether fast logits are accurate; see `kernels/query.py`.
    """

    pairs: jax.Array
    severity: jax.Array


def forward(
    spec: Spec, inputs: Inputs, *, tile: Tile | None = None
) -> tuple[jax.Array, Normalizer | None]:
    """The output, and what the backward pass needs to compute the weights again.

    Args:
      spec: the static options.
      inputs: the arrays.
      tile: how to cut the problem; None chooses.

    Returns:
      out: (B, Ho, Wo, C) in value.dtype.
      normalizer: float32; None without softmax.
    """
    return batched(lambda *x: _forward(spec, Inputs(*x), tile))(*inputs)


def backward(
    spec: Spec,
    residuals: Residuals,
    d_out: jax.Array,
    *,
    tiles: tuple[Tile, Tile] | None = None,
) -> Inputs:
    """Gradients of query, key, value and prior, each in the dtype of its array.

    Args:
      spec: the static options.
      residuals: what the forward pass saved.
      d_out: (B, Ho, Wo, C), the gradient of the output.
      tiles: of the query and the key kernel; None chooses.
    """
    return batched(lambda saved, g: _backward(spec, saved, g, tiles))(residuals, d_out)


def batched(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with a rule for vmap: calls of Triton have none, so it loops."""
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def rule(size: int, batched: Any, *arrays: Any) -> Any:
        def one(i: jax.Array) -> Any:
            picked = [
                jax.tree.map(lambda x, b: x[i] if b else x, *pair)
                for pair in zip(arrays, batched, strict=True)
            ]
            return mapped(*picked)

        out = jax.lax.map(one, jnp.arange(size))
        return out, jax.tree.map(lambda _: True, out)

    return mapped


def plan(
    spec: Spec, inputs: Inputs, tile: Tile, *, by_key: bool = False, sums_prior: bool = False
) -> Plan:
    """The plan of a kernel for the GPU at hand."""
    return Plan.of(
        spec,
        inputs,
        by_key=by_key,
        strip=tile.strip,
        lanes=tile.lanes,
        repeats=tile.strips_per_lane,
        pairs=multiplies_pairs(),
        sums_prior=sums_prior,
    )


def tile_of(problem: Problem, kernel: str) -> Tile:
    """The tile that a kernel runs with; `kernel` is "forward", "query" or "key"."""
    return tiling.chosen(problem, kernel, NAME)


def prior_table(p: Plan, prior: jax.Array | None) -> jax.Array | None:
    """The prior as the kernels read it: (2, Kh + 1, G, Kw padded to 16 bytes) float32.

    The first half is in units of log 2, the second half in natural units. The extra window row is
    for rows outside the image. It holds -inf, which makes weights 0. Without softmax it holds 0.
    Finite numbers stay finite: 3e38 * log2(e) would overflow.
    """
    if prior is None:
        return None
    natural = jnp.swapaxes(prior.astype(jnp.float32), 0, 1)  # (Kh, G, Kw)
    natural = jnp.pad(natural, ((0, 0), (0, 0), (0, p.prior_row - p.kw)))
    outside = -jnp.inf if p.softmax else 0.0
    natural = jnp.pad(natural, ((0, 1), (0, 0), (0, 0)), constant_values=outside)
    limit = float(np.finfo(np.float32).max)
    in_log2 = jnp.where(jnp.isinf(natural), natural, jnp.clip(natural * LOG2E, -limit, limit))
    return jnp.stack([in_log2, natural])


def call(
    p: Plan, kernel: Any, name: str, arrays: list[jax.Array], results: list[jax.ShapeDtypeStruct]
) -> tuple[jax.Array, ...]:
    """Runs a kernel over the grid of its plan."""
    capability = stack.capability()
    call = stack.Call(kernel, name, tuple(results), p.grid, p.lanes // 32, capability, p)
    return kept.run(call, arrays)


def _forward(spec: Spec, inputs: Inputs, tile: Tile | None) -> tuple[jax.Array, Normalizer | None]:
    from pallas_kernels.jax_triton.kernels import forward as kernels

    tile = tile or tile_of(Problem.of(spec, inputs), "forward")
    p, query = plan(spec, inputs, tile), inputs.query
    table = prior_table(p, inputs.prior)
    # A kernel without a prior reads nothing from its place.
    arrays = [query, inputs.key, inputs.value, query if table is None else table]
    out = jax.ShapeDtypeStruct((*query.shape[:3], p.channels), inputs.value.dtype)
    number = jax.ShapeDtypeStruct(query.shape[:4], jnp.float32)
    name = "local_relation_forward"
    if not p.softmax:
        return call(p, kernels.forward_unnormalized, name, arrays, [out])[0], None
    found, shift, factor = call(p, kernels.forward, name, arrays, [out, number, number])
    return found, Normalizer(shift, factor)


def _backward(
    spec: Spec, residuals: Residuals, d_out: jax.Array, tiles: tuple[Tile, Tile] | None
) -> Inputs:
    inputs = residuals.inputs
    problem = Problem.of(spec, inputs)
    for_query, for_key = tiles or (tile_of(problem, "query"), tile_of(problem, "key"))
    d_query, d_prior, stats = query_gradients(spec, for_query, residuals, d_out)
    shift = residuals.normalizer.shift if residuals.normalizer else None
    d_key, d_value = key_gradients(spec, for_key, inputs, d_out, shift, stats)
    return Inputs(d_query, d_key, d_value, d_prior)


def query_gradients(
    spec: Spec, tile: Tile, residuals: Residuals, d_out: jax.Array
) -> tuple[jax.Array, jax.Array | None, PixelStats | None]:
    """Runs the query kernel.

    Returns:
      d_query: like the query.
      d_prior: like the prior, None without one.
      stats: for the key kernel; None without softmax.
    """
    from pallas_kernels.jax_triton.kernels import query as kernels

    (query, key, value, prior), out, normalizer = residuals
    p = plan(spec, residuals.inputs, tile, sums_prior=prior is not None)
    table = prior_table(p, prior)
    arrays = [query, key, value, query if table is None else table]
    results = [jax.ShapeDtypeStruct(query.shape, query.dtype)]
    if normalizer is not None:
        arrays += [out, d_out, normalizer.shift, normalizer.factor]
        results.append(jax.ShapeDtypeStruct((*query.shape[:4], 2), jnp.float32))
        lanes = (p.batch, p.strips, p.out_height, p.groups)
        results.append(jax.ShapeDtypeStruct(lanes, jnp.int32))
    else:
        arrays.append(d_out)
    columns = (p.kh, p.prior_columns // p.groups, p.groups, p.prior_row)
    if prior is not None:
        results.append(jax.ShapeDtypeStruct(columns, jnp.float32))
    kernel = {
        (True, True): kernels.query_gradients,
        (True, False): kernels.query_gradients_without_prior,
        (False, True): kernels.unnormalized_query_gradients,
        (False, False): kernels.unnormalized_query_gradients_without_prior,
    }[p.softmax, p.has_prior]
    found = call(p, kernel, "local_relation_backward_query", arrays, results)
    d_prior = stats = None
    if prior is not None:
        summed = jnp.sum(found[-1], axis=1)[..., : p.kw]  # (Kh, G, Kw)
        d_prior = jnp.swapaxes(summed, 0, 1).astype(prior.dtype)
    if p.softmax:
        stats = PixelStats(found[1], _by_key_row(p, found[2]))
    return found[0], d_prior, stats


def key_gradients(
    spec: Spec,
    tile: Tile,
    inputs: Inputs,
    d_out: jax.Array,
    shift: jax.Array | None,
    stats: PixelStats | None,
) -> tuple[jax.Array, jax.Array]:
    """Runs the key kernel: d_key and d_value."""
    from pallas_kernels.jax_triton.kernels import key as kernels

    query, key, value, prior = inputs
    p = plan(spec, inputs, tile, by_key=True)
    table = prior_table(p, prior)
    arrays = [query, key, value, query if table is None else table, d_out]
    kernel = kernels.unnormalized_key_gradients
    if stats is not None:
        assert shift is not None
        arrays += [shift, stats.pairs, stats.severity]
        kernel = kernels.key_gradients
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (key, value)]
    d_key, d_value = call(p, kernel, "local_relation_backward_key", arrays, results)
    return d_key, d_value


def _by_key_row(p: Plan, severity: jax.Array) -> jax.Array:
    """(B, H): the worst severity of the output rows whose windows contain a row of keys."""
    of_row = jnp.max(severity, axis=(1, 3))[:, None]  # (B, 1, Ho)
    offset = jnp.arange(p.height)[:, None] + p.top - jnp.arange(p.out_height) * p.stride
    in_window = (offset >= 0) & (offset < p.kh)  # (H, Ho)
    return jnp.max(jnp.where(in_window, of_row, 0), axis=2)
