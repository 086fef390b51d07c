"""The Pallas kernels for NVIDIA GPUs (Ampere and newer), and what depends on Pallas-Triton.

Nothing outside this folder depends on Pallas-Triton, except tests and tools of the kernels.

A reader may start with `strips` (what a lane owns) and `forward_kernel`. Each kernel has a file
for its call and one for its loops over taps: `forward_kernel` and `forward_taps`, `query_kernel`
and `query_taps`, `key_kernel` and `key_taps`. `backward_pass` joins the last two. `output_strip`
and `key_strip` compute addresses, the folder `lanes` reads, writes and computes, and `tiling`
chooses how a problem is cut.
"""

import contextlib
import functools
import math
from collections.abc import Iterator

import jax
import numpy as np
from jax import export

from pallas_kernels.platform_switch import gpu_obstacle
from pallas_kernels.spec import Inputs, Normalizer, Residuals, Spec

DESCRIPTION = "fused kernels on this GPU"

MAX_DEPTH = 16
MAX_KERNEL_WIDTH = 15
MAX_STRIDE = 8
MAX_ELEMENTS = 2**31 - 2**20  # indices have 32 bits and reach a little beyond the last element

# For `jax.export.export(..., disabled_checks=EXPORT_CHECKS)` with "cuda" among the platforms. JAX
# promises no compatibility for this custom call: an artifact runs with the JAX that wrote it.
EXPORT_CHECKS = (export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton"),)


def unsupported(spec: Spec, inputs: Inputs) -> str | None:
    """Why the kernels cannot run a problem on any GPU, with the mend; None if they can.

    The inputs may be `jax.ShapeDtypeStruct`s.
    """
    if (reason := backend_gone()) is not None:
        return reason
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
    for name, number, limit in (
        ("D, the length of each query,", inputs.query.shape[-1], MAX_DEPTH),
        ("the kernel's width", spec.kernel_size[1], MAX_KERNEL_WIDTH),
        ("stride", spec.stride, MAX_STRIDE),
    ):
        if number > limit:
            return f"{name} is {number}; use at most {limit}, or 'xla'"
    return None


@functools.cache
def backend_gone() -> str | None:
    """Why this JAX cannot run the kernels at all; None if it can.

    JAX 0.11 and later warn that Pallas-Triton will leave. A JAX without it can still use xla. Its
    import takes as long as a tenth of that of JAX, so it waits for the first problem.
    """
    try:
        from pallas_kernels.pallas import backward_pass, forward_kernel  # noqa: F401
    except ImportError as error:
        mend = "use 'jax_triton', jax<0.13, or 'xla'"
        return f"JAX {jax.__version__} has no Pallas-Triton ({error}); {mend}"
    return None


def unavailable() -> str | None:
    """Why the compiled kernels cannot run on this machine, with the mend; None if they can."""
    return gpu_obstacle()


def forward(spec: Spec, inputs: Inputs) -> tuple[jax.Array, Normalizer | None]:
    """The output, and the normaliser for the backward pass."""
    from pallas_kernels.pallas import forward_kernel

    return forward_kernel.forward(spec, inputs)


def backward(spec: Spec, residuals: Residuals, d_out: jax.Array) -> Inputs:
    """The gradients of the inputs."""
    from pallas_kernels.pallas import backward_pass

    return backward_pass.backward(spec, residuals, d_out)


@contextlib.contextmanager
def absent_gpu(mesh: jax.sharding.AbstractMesh | None = None) -> Iterator[None]:
    """Lets a program be lowered for CUDA on a machine without a GPU (`jax.export`, or a tool).

    From JAX 0.11 on, Pallas reads the kind of device from the mesh in use if no GPU is here.

    Args:
      mesh: of the GPU to lower for; None for an H100, unless this machine has a GPU.
    """
    if jax.__version_info__ < (0, 11) or (mesh is None and unavailable() is None):
        yield
        return
    with jax.sharding.use_abstract_mesh(mesh or _h100()):
        yield


def _h100() -> jax.sharding.AbstractMesh:
    device = jax.sharding.AbstractDevice(
        device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu"
    )
    return jax.sharding.AbstractMesh((1,), ("_",), abstract_device=device)
