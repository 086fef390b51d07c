"""Checks the arguments of the public function and collects the static ones in a `Spec`."""

import math
import numbers

import jax.numpy as jnp

from pallas_kernels.spec import (
    NORMALIZATIONS,
    SIMILARITIES,
    Inputs,
    Normalization,
    Similarity,
    Spec,
)


def make_spec(
    kernel_size: int | tuple[int, int],
    channels_per_group: int,
    stride: int,
    dilation: int,
    similarity: Similarity,
    scale: float,
    normalization: Normalization,
) -> Spec:
    """The options of `local_relation` as a `Spec`; raises TypeError or ValueError as it does."""
    kernel_size = _odd_pair(kernel_size)
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
        kernel_size=kernel_size,
        channels_per_group=_positive("channels_per_group", channels_per_group),
        stride=_positive("stride", stride),
        dilation=_positive("dilation", dilation),
        similarity=similarity,
        scale=float(scale),
        normalization=normalization,
    )


def check_inputs(spec: Spec, inputs: Inputs) -> None:
    """Raises TypeError or ValueError unless types, dtypes and shapes fit the spec."""
    arrays = inputs._asdict()
    if inputs.prior is None:
        del arrays["prior"]
    for name, array in arrays.items():
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise TypeError(f"{name} must be an array, got {type(array).__name__}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"{name} must be floating point, got {array.dtype}; cast it with .astype"
            )
    _check_shapes(spec, {name: array.shape for name, array in arrays.items()})


def _check_shapes(spec: Spec, shapes: dict[str, tuple[int, ...]]) -> None:
    axes = {"query": "(B,Ho,Wo,G,D)", "key": "(B,H,W,G,D)", "value": "(B,H,W,C)"}
    for name, text in axes.items():
        shape, rank = shapes[name], text.count(",") + 1
        if len(shape) != rank:
            raise ValueError(f"{name} must be {text}, got shape {shape}; use vmap for more axes")
        if 0 in shape:
            raise ValueError(f"{name} must not be empty, got shape {shape}")
    batch, height, width, channels = shapes["value"]
    groups = spec.groups(channels)
    depth = shapes["query"][-1]
    wanted = {
        "query": (batch, *spec.output_size(height, width), groups, depth),
        "key": (batch, height, width, groups, depth),
        "prior": (groups, *spec.kernel_size),
    }
    for name, shape in wanted.items():
        if name in shapes and shapes[name] != shape:
            raise ValueError(
                f"{name} must have shape {shape}, got {shapes[name]}: value {shapes['value']}, "
                f"channels_per_group {spec.channels_per_group} (so {groups} groups), "
                f"stride {spec.stride}, kernel_size {spec.kernel_size}, D {depth}"
            )


def _odd_pair(kernel_size: int | tuple[int, int]) -> tuple[int, int]:
    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, numbers.Integral) else kernel_size
    if not isinstance(sizes, tuple | list) or len(sizes) != 2:
        raise TypeError(f"kernel_size must be an odd int or a pair of them, got {kernel_size!r}")
    for size in sizes:
        size = _positive("kernel_size", size)
        if size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {size}; use {size - 1} or {size + 1}")
    return int(sizes[0]), int(sizes[1])


def _positive(name: str, number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {number!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return int(number)
