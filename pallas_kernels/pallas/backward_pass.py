"""The backward pass: two kernels that gather. They use no atomics, so runs repeat bit for bit.

With w the weight, g the gradient of the output and delta = g . out (both over a group's channels):

    d_logit = w * (g . value - delta)                     (without softmax: g . value)
    d_query = sum over taps    d_logit * dPhi/dquery      query kernel: a lane owns output pixels
    d_prior = sum over pixels  d_logit                    query kernel
    d_key   = sum over taps    d_logit * dPhi/dkey        key kernel: a lane owns input pixels
    d_value = sum over taps    w * g                      key kernel

Weights are computed again from the saved normalizer, w = exp(logit - shift) * factor. Where the
forward pass needed no maximum, the shift is 0 and drops out. Every program of the query kernel
checks whether this holds for its pixels, and stores the severity of each lane's worst pixel. XLA
then reduces the severities to one per row of keys, over the output rows whose windows contain the
row. The key kernel chooses its path by that number.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.pallas.key_kernel import key_gradients
from pallas_kernels.pallas.lanes import operands
from pallas_kernels.pallas.lanes.memory import Layout
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.pallas.query_kernel import query_gradients
from pallas_kernels.pallas.tiling import Tile, chosen
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
      interpret: whether to run the kernels in JAX's interpreter: on any platform, slowly.
      tiles: of the query and the key kernel; None chooses, see tiling.py.
    """
    inputs = residuals.inputs
    problem = Problem.of(spec, inputs)
    for_query, for_key = tiles or (chosen(problem, "query"), chosen(problem, "key"))
    flat, d_out = in_memory(problem, residuals, d_out)
    d_query, d_prior, stats = query_gradients(problem, for_query, flat, d_out, interpret=interpret)
    shift = flat.normalizer.shift if flat.normalizer else None
    d_key, d_value = key_gradients(
        problem, for_key, flat.inputs, d_out, shift, stats, interpret=interpret
    )
    if inputs.prior is not None:
        assert d_prior is not None
        d_prior = jnp.swapaxes(d_prior, 0, 1).astype(inputs.prior.dtype)
    return Inputs(
        Layout.query(problem).unflatten(d_query, inputs.query.shape),
        Layout.key(problem).unflatten(d_key, inputs.key.shape),
        Layout.value(problem).unflatten(d_value, inputs.value.shape),
        d_prior,
    )


def in_memory(
    problem: Problem, residuals: Residuals, d_out: jax.Array
) -> tuple[Residuals, jax.Array]:
    """The arguments of `backward` as flat arrays, for the kernels to read."""
    inputs, out, normalizer = residuals
    layout = Layout.value(problem)
    flat = operands.in_memory(problem, inputs)
    out, d_out = layout.flatten(out), layout.flatten(d_out)
    return Residuals(flat, out, jax.tree.map(lambda x: x.reshape(-1), normalizer)), d_out
