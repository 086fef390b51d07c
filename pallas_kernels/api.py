"""The local relation operator: the one public function, read this first.

For every output pixel p and group g (Eqns. 1 and 2 of "Local Relation Networks for Image
Recognition", Hu et al., ICCV 2019):

    out[p, c]  = sum over taps t of  w[p, t, g] * value[p + offset(t), c],     g = c // M
    w[p, :, g] = softmax over t of ( scale * Phi(query[p, g], key[p + offset(t), g]) + prior[g, t] )

Taps outside the image are left out of the softmax and contribute nothing.

Implementations, one module each:

    reference          plain jnp, unfolds the windows: the specification
    xla                memory-lean, runs on every platform, own backward; the default elsewhere
    pallas             fused kernels for NVIDIA GPUs (Ampere and newer), the default there
    pallas_interpret   the same kernels in JAX's interpreter: anywhere, very slowly, for tests

All of them compute similarity, softmax and sums in float32 whatever the input dtype (float64 if
an input is float64).
"""

import functools
import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import pallas, reference, xla
from pallas_kernels.platform_switch import vary_alike
from pallas_kernels.spec import (
    NORMALIZATIONS,
    SIMILARITIES,
    Normalization,
    Similarity,
    Spec,
)

IMPLEMENTATIONS = ("reference", "xla", "pallas", "pallas_interpret")


class Support(NamedTuple):
    """Whether an implementation can run a problem on this machine, and why (not)."""

    runs: bool
    reason: str


def local_relation(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None = None,
    *,
    kernel_size: int | tuple[int, int],
    channels_per_group: int,
    stride: int = 1,
    dilation: int = 1,
    similarity: Similarity = "squared_difference",
    scale: float = 1.0,
    normalization: Normalization = "softmax",
    implementation: str | None = None,
) -> jax.Array:
    """Aggregates each pixel's neighbours with weights composed from query, key and prior.

    Differentiable in all four arrays (reverse mode; forward mode only for "reference"); works
    under jit, grad, vmap, pmap, shard_map, remat and jax.export.

    Args:
      query: (B, Ho, Wo, G, D) floating point, G = ceil(C / channels_per_group), D >= 1.
      key: (B, H, W, G, D).
      value: (B, H, W, C).
      prior: (G, Kh, Kw) geometric prior added to the logits, or None.
      kernel_size: odd K, or (Kh, Kw), both odd. May exceed the image.
      channels_per_group: M >= 1, how many channels share one weight. Need not divide C.
      stride: s >= 1; Ho = (H - 1) // s + 1, output (i, j) is centred on input (i * s, j * s).
      dilation: distance between taps in input pixels, >= 1.
      similarity: "squared_difference" -(q-k)^2 (Eqn. 3), "absolute_difference" -|q-k| (Eqn. 4) or
        "multiplication" q*k (Eqn. 5), each summed over D.
      scale: finite number multiplying Phi, not the prior.
      normalization: "softmax" over the taps, or "none": the logit itself is the weight.
      implementation: None works everywhere: pallas where the program is lowered for a capable GPU
        and the kernels support the problem, else xla. A named one that cannot run here raises and
        says why. `implementations` lists them.

    Returns:
      (B, Ho, Wo, C) in value.dtype.

    Raises:
      TypeError: an argument has the wrong type or dtype.
      ValueError: an argument has a wrong value or shape, or the implementation cannot run.

    Source: Section 3 and Eqns. 1 to 5 of the paper.
    """
    spec = _make_spec(
        kernel_size, channels_per_group, stride, dilation, similarity, scale, normalization
    )
    _check_arrays(spec, query, key, value, prior)
    if implementation is None:
        implementation = _fastest(spec, query, key, value, prior)
    elif implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be None or one of {', '.join(IMPLEMENTATIONS)}; "
            f"got {implementation!r}"
        )
    else:
        support = _supports(spec, query, key, value, prior)[implementation]
        if not support.runs:
            raise ValueError(f"implementation {implementation!r} cannot run: {support.reason}")
    return _run(spec, implementation, query, key, value, prior)


def implementations(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None = None,
    *,
    kernel_size: int | tuple[int, int],
    channels_per_group: int,
    stride: int = 1,
    dilation: int = 1,
    similarity: Similarity = "squared_difference",
    scale: float = 1.0,
    normalization: Normalization = "softmax",
) -> dict[str, Support]:
    """Tells for every implementation whether it can run this problem here, and the reason.

    Takes the arguments of `local_relation` (arrays may be `jax.ShapeDtypeStruct`) and raises as it
    does.

    Returns:
      Name to `Support(runs, reason)`.
    """
    spec = _make_spec(
        kernel_size, channels_per_group, stride, dilation, similarity, scale, normalization
    )
    _check_arrays(spec, query, key, value, prior)
    return _supports(spec, query, key, value, prior)


def _supports(
    spec: Spec,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
) -> dict[str, Support]:
    why = pallas.unsupported(spec, query, key, value, prior)
    why_here = why or pallas.unavailable()
    return {
        "reference": Support(True, "plain jnp: every platform, dtype and option"),
        "xla": Support(True, "compiled by XLA: every platform, dtype and option"),
        "pallas": Support(why_here is None, why_here or "fused kernels on this GPU"),
        "pallas_interpret": Support(
            why is None, why or "the fused kernels in JAX's interpreter: very slow, for tests"
        ),
    }


def _fastest(
    spec: Spec,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
) -> str:
    """Names xla or leaves it to lowering ("automatic"): programs may be compiled for elsewhere."""
    if pallas.unsupported(spec, query, key, value, prior):
        return "xla"
    if jax.default_backend() in ("gpu", "cuda") and pallas.unavailable():
        return "xla"  # a GPU, but too old
    return "automatic"


# The static arguments make one compiled function per problem: calls outside jit are fast too, and
# inside jit equal layers share one traced and lowered function.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(
    spec: Spec,
    implementation: str,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
) -> jax.Array:
    if implementation == "reference":
        return reference.forward(spec, query, key, value, prior)
    return _fused(spec, implementation, *vary_alike(query, key, value, prior))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(
    spec: Spec,
    implementation: str,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
) -> jax.Array:
    """An implementation with a backward pass of its own."""
    return _fused_forward(spec, implementation, query, key, value, prior)[0]


_GPU_MODES: dict[str, pallas.Mode] = {
    "automatic": "automatic",
    "pallas": "compiled",
    "pallas_interpret": "interpreted",
}

# Saved for the backward pass: the inputs, the output and the normalizer of each pixel and group.
# Weights are computed again from these; saving them would cost Kh*Kw/2 times as much.
_Residuals = tuple[
    jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array, xla.Normalizer | None
]


def _fused_forward(
    spec: Spec,
    implementation: str,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
) -> tuple[jax.Array, _Residuals]:
    if implementation == "xla":
        out, normalizer = xla.forward(spec, query, key, value, prior)
    else:
        mode = _GPU_MODES[implementation]
        out, normalizer = pallas.forward(spec, mode, query, key, value, prior)
    return out, (query, key, value, prior, out, normalizer)


def _fused_backward(
    spec: Spec, implementation: str, residuals: _Residuals, d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    if implementation == "xla":
        return xla.backward(spec, *residuals, d_out)
    return pallas.backward(spec, _GPU_MODES[implementation], *residuals, d_out)


_fused.defvjp(_fused_forward, _fused_backward)


def _make_spec(
    kernel_size: int | tuple[int, int],
    channels_per_group: int,
    stride: int,
    dilation: int,
    similarity: Similarity,
    scale: float,
    normalization: Normalization,
) -> Spec:
    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, numbers.Integral) else kernel_size
    if not isinstance(sizes, tuple | list) or len(sizes) != 2:
        raise TypeError(f"kernel_size must be an odd int or a pair of them, got {kernel_size!r}")
    for size in sizes:
        size = _positive("kernel_size", size)
        if size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {size}; use {size - 1} or {size + 1}")
    for name, choice, choices in (
        ("similarity", similarity, SIMILARITIES),
        ("normalization", normalization, NORMALIZATIONS),
    ):
        if choice not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {choice!r}")
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        raise TypeError(
            f"scale must be a Python number, got {scale!r}; multiply the query to learn a scale"
        )
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale!r}")
    return Spec(
        kernel_size=(int(sizes[0]), int(sizes[1])),
        channels_per_group=_positive("channels_per_group", channels_per_group),
        stride=_positive("stride", stride),
        dilation=_positive("dilation", dilation),
        similarity=similarity,
        scale=float(scale),
        normalization=normalization,
    )


def _positive(name: str, number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {number!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return int(number)


def _check_arrays(
    spec: Spec,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
) -> None:
    arrays = {"query": query, "key": key, "value": value}
    if prior is not None:
        arrays["prior"] = prior
    for name, array in arrays.items():
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise TypeError(f"{name} must be an array, got {type(array).__name__}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"{name} must be floating point, got {array.dtype}; cast it with .astype"
            )

    axes = {"query": "(B,Ho,Wo,G,D)", "key": "(B,H,W,G,D)", "value": "(B,H,W,C)"}
    for name, text in axes.items():
        shape, rank = arrays[name].shape, text.count(",") + 1
        if len(shape) != rank:
            raise ValueError(f"{name} must be {text}, got shape {shape}; use vmap for more axes")
        if 0 in shape:
            raise ValueError(f"{name} must not be empty, got shape {shape}")
    batch, height, width, channels = value.shape
    groups = spec.groups(channels)
    depth = query.shape[-1]
    wanted = {
        "query": (batch, *spec.output_size(height, width), groups, depth),
        "key": (batch, height, width, groups, depth),
        "prior": (groups, *spec.kernel_size),
    }
    for name, shape in wanted.items():
        if name in arrays and arrays[name].shape != shape:
            raise ValueError(
                f"{name} must have shape {shape}, got {arrays[name].shape}: value {value.shape}, "
                f"channels_per_group {spec.channels_per_group} (so {groups} groups), "
                f"stride {spec.stride}, kernel_size {spec.kernel_size}, D {depth}"
            )
