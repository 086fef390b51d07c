"""The rectifier, whose derivative is computed from its output."""

import jax
import jax.numpy as jnp

from lrnet_jax.layers.kept import keep


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), as jax.nn.relu, with the derivative 0 at 0.

    The derivative of jax.nn.relu looks at x, and so keeps x for the backward pass. The output says
    the same, and the next layer keeps that anyway.
    """
    return jnp.maximum(x, 0.0)  # an integer 0 makes float64 of it in jax2onnx


@relu.defjvp
def _relu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # The next layer keeps it as well; layers that are computed again need not compute it.
    y = keep(relu(*primals))
    # For y > 0, XLA would compare the input with 0 after all.
    return y, jnp.where(y == 0, 0, tangents[0])
