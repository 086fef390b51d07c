"""Gradients of the kernels of 1x1 convolutions; `weight_gradients.cc` has the algorithm."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.native import calls, library


def unsupported(x: jax.Array, gradient: jax.Array) -> str | None:
    """Why the library cannot run this on any CPU; None if it can. Takes abstract arrays too."""
    if x.dtype != jnp.float32 or gradient.dtype != jnp.float32:
        return "it computes in float32, of float32"
    return None if x.size and gradient.size else "an array is empty"


def unavailable() -> str | None:
    """Why this machine cannot run it; None if it can. A program for CPUs may be run elsewhere."""
    return library.obstacle()


def weight_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient (inputs, outputs) of the kernel of x @ kernel, float32.

    Args:
      x: (pixels, inputs) float32.
      gradient: (pixels, outputs) float32, of the product.
    """
    (pixels, inputs), outputs = x.shape, gradient.shape[1]
    sizes = pixels, inputs, outputs
    *cut, memory = library.weight_plan(sizes, calls.cores())
    tasks = int(np.prod(cut))
    results = (
        calls.float32_shape((inputs, outputs)),
        calls.float32_shape((cut[0] - 1, inputs, outputs)),
        calls.working_memory(tasks, memory),
    )
    call = jax.ffi.ffi_call(library.WEIGHT_GRADIENT, results, vmap_method="sequential")
    found, *_ = call(x, gradient, sizes=np.array((*sizes, *cut), np.int64))
    return found
