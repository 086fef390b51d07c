"""The Pallas kernels for NVIDIA GPUs, and the choice between them and XLA at lowering.

Everything that depends on Pallas-Triton is in this folder.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax import export

from pallas_kernels import xla
from pallas_kernels.platform_switch import by_platform
from pallas_kernels.spec import Inputs, Residuals, Spec

# JAX 0.11 and later warn that Pallas-Triton will leave; a JAX without it can still use xla.
_backend_gone: str | None = None
try:
    from pallas_kernels.pallas import backward_pass, forward_kernel
except ImportError as error:
    _backend_gone = f"JAX {jax.__version__} has no Pallas-Triton ({error}); use jax<0.13, or 'xla'"

Mode = Literal["automatic", "compiled", "interpreted"]

LARGEST_DEPTH = 16
WIDEST_KERNEL = 15
LARGEST_STRIDE = 8
MOST_ELEMENTS = 2**31 - 2**20  # indices are 32-bit, and reach a little beyond the last element


# For `jax.export.export(..., disabled_checks=EXPORT_CHECKS)` with "cuda" among the platforms. JAX
# promises no compatibility for this custom call: an artifact runs with the JAX that wrote it.
EXPORT_CHECKS = (export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton"),)


@contextlib.contextmanager
def absent_gpu(kind: str = "NVIDIA H100 80GB HBM3") -> Iterator[None]:
    """Lets a program be lowered for CUDA (`jax.export`) on a machine without a GPU.

    From JAX 0.11 on, Pallas asks the mesh in use for the kind of device if none is here.

    Args:
      kind: what the driver calls the GPU.
    """
    if jax.__version_info__ < (0, 11) or unavailable() is None:
        yield
        return
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("_",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


def unsupported(spec: Spec, query: Any, key: Any, value: Any, prior: Any) -> str | None:
    """Why the kernels cannot run a problem on any GPU, with the mend; None if they can.

    Arrays may be `jax.ShapeDtypeStruct`s.
    """
    if _backend_gone:
        return _backend_gone
    arrays = {"query": query, "key": key, "value": value, "prior": prior}
    for name, array in arrays.items():
        if array is None:
            continue
        if np.dtype(array.dtype).itemsize > 4:
            return f"{name} is {array.dtype}; use float32, bfloat16, float16, or 'xla'"
        if math.prod(array.shape) > MOST_ELEMENTS:
            return (
                f"{name} has {math.prod(array.shape)} elements, more than {MOST_ELEMENTS}; "
                f"split the batch of {value.shape[0]} or use 'xla'"
            )
    for name, number, limit in (
        ("D, the length of each query,", query.shape[-1], LARGEST_DEPTH),
        ("the kernel's width", spec.kernel_size[1], WIDEST_KERNEL),
        ("stride", spec.stride, LARGEST_STRIDE),
    ):
        if number > limit:
            return f"{name} is {number}; use at most {limit}, or 'xla'"
    return None


def unavailable() -> str | None:
    """Why the compiled kernels cannot run on this machine, with the mend; None if they can."""
    backend = jax.default_backend()
    if backend not in ("gpu", "cuda"):
        return (
            f"JAX computes on {backend} here and the kernels need an NVIDIA GPU; use 'xla', or "
            "'pallas_interpret' to see them run slowly"
        )
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    if capability is None or float(capability) < 8.0:
        return (
            f"{device.device_kind} has compute capability {capability} and the kernels need 8.0 "
            "(Ampere); use 'xla'"
        )
    return None


def forward(
    spec: Spec,
    mode: Mode,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
) -> tuple[jax.Array, xla.Normalizer | None]:
    """The forward pass of xla.py and forward_kernel.py, which give the same results.

    Args:
      spec: the static options.
      mode: "compiled", "interpreted", or "automatic": compiled where the program is lowered for
        CUDA, xla elsewhere.
      query: (B, Ho, Wo, G, D).
      key: (B, H, W, G, D).
      value: (B, H, W, C).
      prior: (G, Kh, Kw) or None.
    """
    arrays = [query, key, value] + ([] if prior is None else [prior])
    out, *normalizer = _forward(spec, mode)(*arrays)
    return out, (normalizer[0], normalizer[1]) if normalizer else None


def backward(
    spec: Spec,
    mode: Mode,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
    out: jax.Array,
    normalizer: xla.Normalizer | None,
    d_out: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Gradients of query, key, value and prior; the arguments of `forward` and its results."""
    arrays = [query, key, value, out, d_out, *(normalizer or ())]
    if prior is not None:
        arrays.append(prior)
    d_query, d_key, d_value, *d_prior = _backward(spec, mode, prior is not None)(*arrays)
    return d_query, d_key, d_value, d_prior[0] if d_prior else None


# Cached, because traced programs are shared by the identity of the function.
@functools.cache
def _forward(spec: Spec, mode: Mode) -> Any:
    def flat(forward: Any, **options: Any) -> Any:
        def run(
            query: jax.Array, key: jax.Array, value: jax.Array, prior: jax.Array | None = None
        ) -> Sequence[jax.Array]:
            out, normalizer = forward(spec, query, key, value, prior, **options)
            return out, *(normalizer or ())

        return jax.jit(run)

    def kernels(spec: Spec, *arrays: Any, **options: Any) -> Any:
        return forward_kernel.forward(spec, Inputs(*arrays), **options)

    if mode == "automatic":
        return by_platform(default=flat(xla.forward), cuda=flat(kernels))
    return by_platform(default=flat(kernels, interpret=mode == "interpreted"))


@functools.cache
def _backward(spec: Spec, mode: Mode, has_prior: bool) -> Any:
    def flat(backward: Any, **options: Any) -> Any:
        def run(
            query: jax.Array,
            key: jax.Array,
            value: jax.Array,
            out: jax.Array,
            d_out: jax.Array,
            *rest: jax.Array,
        ) -> Sequence[jax.Array]:
            prior = rest[-1] if has_prior else None
            normalizer = rest[:2] if spec.normalization == "softmax" else None
            *gradients, d_prior = backward(
                spec, query, key, value, prior, out, normalizer, d_out, **options
            )
            return *gradients, *(() if d_prior is None else (d_prior,))

        return jax.jit(run)

    def kernels(spec: Spec, *arrays: Any, **options: Any) -> Any:
        *inputs, out, normalizer, d_out = arrays
        residuals = Residuals(Inputs(*inputs), out, normalizer)
        return backward_pass.backward(spec, residuals, d_out, **options)

    if mode == "automatic":
        return by_platform(default=flat(xla.backward), cuda=flat(kernels))
    return by_platform(default=flat(kernels, interpret=mode == "interpreted"))
