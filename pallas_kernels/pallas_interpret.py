"""The Pallas kernels in JAX's interpreter: on every platform, very slowly, for tests."""

import jax

from pallas_kernels import pallas
from pallas_kernels.spec import Inputs, Normalizer, Residuals, Spec

DESCRIPTION = "the fused kernels in JAX's interpreter: very slow, for tests"

unsupported = pallas.unsupported


def unavailable() -> str | None:
    """None: it runs on every machine."""
    return None


def forward(spec: Spec, inputs: Inputs) -> tuple[jax.Array, Normalizer | None]:
    """As `pallas.forward`."""
    from pallas_kernels.pallas import forward_kernel

    return forward_kernel.forward(spec, inputs, interpret=True)


def backward(spec: Spec, residuals: Residuals, d_out: jax.Array) -> Inputs:
    """As `pallas.backward`."""
    from pallas_kernels.pallas import backward_pass

    return backward_pass.backward(spec, residuals, d_out, interpret=True)
