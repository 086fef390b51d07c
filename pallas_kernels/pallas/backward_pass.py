"""Backward pass on an NVIDIA GPU: two Pallas kernels that gather; no atomics, so runs repeat.

With w the weight, g the gradient of the output and delta = g . out (both over a group's channels):

    d_logit = w * (g . value - delta)                     (without softmax: g . value)
    d_query = sum over taps    d_logit * dPhi/dquery      query kernel: a lane owns output pixels
    d_prior = sum over pixels  d_logit                    query kernel
    d_key   = sum over taps    d_logit * dPhi/dkey        key kernel: a lane owns input pixels
    d_value = sum over taps    w * g                      key kernel

Weights are computed again from the saved normaliser, weight = exp(logit - shift) * factor. Where
the forward pass needed no maximum, shift is 0 and drops out; every program of the query kernel
looks whether that holds for its pixels, and leaves a finding for each of its lanes. From these XLA
tells for each row of keys whether it holds for the output rows that look at it.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.pallas.key_kernel import key_side
from pallas_kernels.pallas.lanes import Layout, scaled_prior
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.query_kernel import query_side
from pallas_kernels.pallas.tiling import Tile, key_tile, query_tile
from pallas_kernels.spec import Inputs, Residuals, Spec


def backward(
    spec: Spec,
    residuals: Residuals,
    d_out: jax.Array,
    *,
    interpret: bool = False,
    tiles: tuple[Tile, Tile] | None = None,
) -> Inputs:
    """Gradients of query, key, value and prior, each in the dtype of its array.

    Args:
      spec: the static options.
      residuals: what the forward pass saved.
      d_out: (B, Ho, Wo, C), the gradient of the output.
      interpret: run the kernels in JAX's interpreter, on any platform, slowly.
      tiles: of the query and the key kernel; None picks them, see tiling.py.
    """
    inputs, out, normalizer = residuals
    problem = Problem.of(spec, inputs)
    for_query, for_key = tiles or (query_tile(problem), key_tile(problem))
    values = Layout.channels(problem)
    arrays = in_memory(problem, inputs)
    d_out = values.to_memory(d_out)
    d_query, d_prior, sums = query_side(
        problem, for_query, interpret, arrays, values.to_memory(out), d_out, normalizer
    )
    shift = normalizer[0] if normalizer else None
    d_key, d_value = key_side(problem, for_key, interpret, arrays, d_out, shift, sums)
    if inputs.prior is not None:
        assert d_prior is not None
        d_prior = jnp.swapaxes(d_prior, 0, 1).astype(inputs.prior.dtype)
    return Inputs(
        Layout.depth(problem, 0).from_memory(d_query, inputs.query.shape),
        Layout.depth(problem, 1).from_memory(d_key, inputs.key.shape),
        values.from_memory(d_value, inputs.value.shape),
        d_prior,
    )


def in_memory(problem: Problem, inputs: Inputs) -> list[jax.Array]:
    """The arrays as the kernels read them."""
    return [
        Layout.depth(problem, 0).to_memory(inputs.query),
        Layout.depth(problem, 1).to_memory(inputs.key),
        Layout.channels(problem).to_memory(inputs.value),
        *scaled_prior(problem, inputs.prior),
    ]
