"""Errors of an implementation against the reference, with their budgets and the reasons."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import reference
from pallas_kernels.spec import Inputs, Residuals
from pallas_kernels.tools.shapes import Shape, make_cotangent, make_inputs

RESULTS = ("out", "d_query", "d_key", "d_value", "d_prior")

REASON = {
    "float32": "16 roundings of float32 of the terms that cancel",
    "float16": "and half a unit in the last place, because the result is rounded; gradients also "
    "see the rounding of `out`, through delta = g . out: another half, of the terms",
}
REASON["bfloat16"] = REASON["float16"]


@dataclasses.dataclass(frozen=True)
class Error:
    """The largest error of one result of one shape, and its budget, as absolute numbers."""

    result: str
    error: float
    budget: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the budget (not so for nan)."""
        return self.error <= self.budget


def errors(
    shape: Shape, dtype: Any, run: Callable[..., tuple[jax.Array | None, ...]], seed: int = 0
) -> list[Error]:
    """Runs an implementation and the float32 reference on the same rounded inputs.

    The budget is in units of the terms that make up a result (`gross`), not of the result: terms
    cancel, down to gradients that are zero.

    Args:
      shape: the problem.
      dtype: of all arrays.
      run: takes query, key, value, prior and the gradient of the output; returns the five
        `RESULTS` (d_prior None without a prior).
      seed: of the inputs.
    """
    inputs = make_inputs(shape, dtype, seed)
    d_out = make_cotangent(shape, dtype, seed + 1)
    got = run(*inputs, d_out)
    want, scale = _expected(shape)(inputs, d_out)
    half_ulp = float(jnp.finfo(dtype).eps) / 2 if jnp.dtype(dtype).itemsize == 2 else 0.0
    found = []
    for result, a, b in zip(RESULTS, got, want, strict=True):
        if b is not None:
            a64, b64 = np.asarray(a, np.float64), np.asarray(b, np.float64)
            terms = float(scale[result])
            budget = 16 * 2.0**-24 * terms + half_ulp * float(np.abs(b64).max())
            if result not in ("out", "d_value"):
                budget += half_ulp * terms
            found.append(Error(result, float(np.abs(a64 - b64).max()), budget))
    return found


def _expected(shape: Shape) -> Any:
    """The reference's results and `gross`, as one compiled function: hundreds of operations."""
    return jax.jit(lambda *arrays: (reference_results(shape, *arrays), gross(shape, *arrays)))


def gross(shape: Shape, inputs: Inputs, d_out: jax.Array) -> dict[str, jax.Array]:
    """The largest sum of the terms' magnitudes in each result: what rounding errors scale with."""
    spec = shape.spec
    inputs, g = jax.tree.map(lambda x: x.astype(jnp.float32), (inputs, d_out))
    query, key, value, prior = inputs
    channels = spec.groups(shape.channels) * spec.channels_per_group

    def per_group(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0),) * 3 + ((0, channels - shape.channels),))
        return x.reshape(*x.shape[:3], shape.groups, -1)

    keys = reference.unfold(key, spec)  # (B,Ho,Wo,K,G,D)
    values = per_group_taps(reference.unfold(value, spec), channels, shape.groups)
    logits = jnp.swapaxes(spec.phi(query[:, :, :, None], keys), 3, 4)  # (B,Ho,Wo,G,K)
    if prior is not None:
        logits += prior.reshape(shape.groups, spec.taps)
    inside = reference.unfold(jnp.ones((1, *value.shape[1:3]), bool), spec)[:, :, :, None]
    softmax = spec.normalization == "softmax"
    weights = jax.nn.softmax(logits, where=inside) if softmax else jnp.abs(logits) * inside
    gs = jnp.abs(per_group(g))
    dots = jnp.einsum("bhwgm,bhwkgm->bhwgk", gs, jnp.abs(values))
    if softmax:
        delta = jnp.sum(gs * jnp.abs(per_group(reference.forward(spec, inputs)[0])), axis=-1)
        d_logits = weights * (dots + delta[..., None])
    else:
        d_logits = dots * inside
    d_logits = jnp.swapaxes(d_logits, 3, 4)[..., None]  # (B,Ho,Wo,K,G,1)
    of_query = jnp.broadcast_to(query[:, :, :, None], keys.shape)
    if spec.similarity == "multiplication":
        slopes = [abs(spec.scale * keys), abs(spec.scale * of_query)]
    elif spec.similarity == "squared_difference":
        slopes = [abs(2 * spec.scale * (of_query - keys))] * 2
    else:
        slopes = [jnp.full(keys.shape, abs(spec.scale))] * 2
    return {
        "out": jnp.einsum("bhwgk,bhwkgm->bhwgm", weights, jnp.abs(values)).max(),
        "d_query": jnp.sum(d_logits * slopes[0], axis=3).max(),
        # By pixel, not by key: as many terms of the same size.
        "d_key": jnp.sum(d_logits * slopes[1], axis=3).max(),
        "d_value": jnp.sum(weights, axis=-1).max() * gs.max(),
        "d_prior": jnp.sum(d_logits, axis=(0, 1, 2)).max(),
    }


def per_group_taps(values: jax.Array, channels: int, groups: int) -> jax.Array:
    """(B,Ho,Wo,K,C) -> (B,Ho,Wo,K,G,M), the last group filled up with zeros."""
    values = jnp.pad(values, ((0, 0),) * 4 + ((0, channels - values.shape[-1]),))
    return values.reshape(*values.shape[:4], groups, -1)


def reference_results(
    shape: Shape, inputs: Inputs, d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    """The five `RESULTS` of reference.py, computed and kept in float32."""
    inputs, d_out = jax.tree.map(lambda x: x.astype(jnp.float32), (inputs, d_out))
    out, normalizer = reference.forward(shape.spec, inputs)
    return out, *reference.backward(shape.spec, Residuals(inputs, out, normalizer), d_out)


def cut(shape: Shape) -> Shape:
    """A small problem with the alignment, the partial group and the options of a network's.

    Odd shapes stay as they are. Many networks' shapes share one small problem, and its name.
    """
    if shape.name.startswith("odd/"):
        return shape
    m, s = shape.spec.channels_per_group, shape.spec.stride
    channels = min(shape.channels, 2 * m + shape.channels % m)
    if math.gcd(channels, 8) != math.gcd(shape.channels, 8):
        raise ValueError(f"{shape.name}: {channels} channels are not aligned like {shape.channels}")
    height, width = min(shape.height, 9 * s + 1), min(shape.width, 14 * s)
    return dataclasses.replace(
        shape,
        name=f"cut/{height}x{width}x{channels}_stride{s}",
        height=height,
        width=width,
        channels=channels,
        batch=1,
    )
