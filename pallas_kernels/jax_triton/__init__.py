"""The kernels in the Triton language, called by jax-triton: NVIDIA GPUs of Ampere and newer.

They compute what the Pallas kernels compute, in the same order of operations, and need no part of
Pallas. `docs/gpu_kernels.md` has the algorithm and both ways to write it.

A reader may start with `kernels/forward.py`. `plan` holds every number of a call that is known
before it runs, `launch` calls the kernels, `kept` keeps them compiled, and `stack` knows the
versions of jax-triton.
"""

import math

import jax
import numpy as np

from pallas_kernels.jax_triton import kept, launch, stack
from pallas_kernels.platform_switch import gpu_obstacle
from pallas_kernels.spec import Inputs, Normalizer, Residuals, Spec

DESCRIPTION = "fused kernels on this GPU, in the Triton language"

MAX_DEPTH = 16
MAX_GROUP = 16
MAX_KERNEL = 9
MAX_STRIDE = 2
MAX_ELEMENTS = 2**31 - 2**20  # indices have 32 bits and reach a little beyond the last element


# As `pallas.EXPORT_CHECKS`. The custom call is part of the CUDA plugin of JAX, which promises no
# compatibility for it: an artifact runs with the JAX that wrote it. It does not need jax-triton.
EXPORT_CHECKS = kept.CHECKS


def unsupported(spec: Spec, inputs: Inputs) -> str | None:
    """Why the kernels cannot run a problem on any GPU, with the mend; None if they can.

    Without the packages that compile them, they cannot run on a GPU elsewhere either. The inputs
    may be `jax.ShapeDtypeStruct`s.
    """
    return beyond_limits(spec, inputs) or stack.missing()


def beyond_limits(spec: Spec, inputs: Inputs) -> str | None:
    """Why the kernels have no code for a problem, with the mend; None if they have."""
    for name, array in inputs._asdict().items():
        if array is None:
            continue
        if np.dtype(array.dtype).itemsize > 4:
            return f"{name} is {array.dtype}; use float32, bfloat16, float16, or 'xla'"
        if math.prod(array.shape) > MAX_ELEMENTS:
            return (
                f"{name} has {math.prod(array.shape)} elements, more than {MAX_ELEMENTS}; "
                f"split the batch of {inputs.value.shape[0]} or use 'xla'"
            )
    group = min(spec.channels_per_group, inputs.value.shape[-1])
    for name, number, limit in (
        ("D, the length of each query,", inputs.query.shape[-1], MAX_DEPTH),
        ("channels_per_group", group, MAX_GROUP),
        ("the kernel's height", spec.kernel_size[0], MAX_KERNEL),
        ("the kernel's width", spec.kernel_size[1], MAX_KERNEL),
        ("stride", spec.stride, MAX_STRIDE),
        ("dilation", spec.dilation, 1),
    ):
        if number > limit:
            return f"{name} is {number}; use at most {limit}, or 'pallas' or 'xla'"
    return None


def unavailable() -> str | None:
    """Why the compiled kernels cannot run on this machine, with the mend; None if they can."""
    return gpu_obstacle()


def forward(spec: Spec, inputs: Inputs) -> tuple[jax.Array, Normalizer | None]:
    """The output, and the normaliser for the backward pass."""
    return launch.forward(spec, inputs)


def backward(spec: Spec, residuals: Residuals, d_out: jax.Array) -> Inputs:
    """The gradients of the inputs."""
    return launch.backward(spec, residuals, d_out)
