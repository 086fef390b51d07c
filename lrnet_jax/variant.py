"""What a network is, as plain data. `plan.py` derives its layers."""

import dataclasses
import difflib
import math
import typing
from typing import Literal

from lrnet_jax.checks import check_odd, check_positive
from lrnet_jax.layers.geometric_prior import Prior
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.spec import Normalization, Similarity

BlockKind = Literal["bottleneck", "basic"]
Operator = Literal["local_relation", "convolution", "depthwise", "non_local"]
StemKind = Literal["local_relation", "convolution"]
Scope = Literal["local", "full"]
Remat = Literal["none", "stem", "blocks"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A residual network whose spatial operator is an option. The defaults are LR-Net-26.

    It is hashable and survives JSON:

        Variant(**json.loads(json.dumps(dataclasses.asdict(variant)))) == variant

    Attributes:
      block: kind of the residual blocks: "bottleneck" (CT to the width, operator, CT to the
        stage's channels) or "basic" (two operators at the width: CT, operator, CT, operator, CT;
        convolutions need no CTs).
      depths: number of blocks of each stage, any number of stages.
      operator: spatial layer of the blocks: "local_relation", "convolution", "depthwise" or
        "non_local".
      width: channels of the operators in the first stage. Each further stage has twice as many.
      stage_channels: channels of the residual stream, one number for each stage, or that of the
        first stage, which doubles with each stage. None is 256 for bottleneck and 64 for basic
        blocks.
      stem: first layer: "local_relation" (CT, local relation) or "convolution".
      stem_strides: stride of the stem's spatial layer. Small images need 1.
      stem_pool: whether a 3x3 max pool of stride 2 follows. Small images need False.
      stem_channels: channels of the stem.
      stem_kernel_size: odd kernel size of the stem.
      stem_channels_per_group: m of the stem's local relation. Its query and key are scalars
        whatever `query_key_dim` is, because ablations of the blocks leave the stem as it is.
      kernel_size: odd kernel size of the blocks' operators.
      channels_per_group: m, how many channels share a weight, or -1 for all (one group per layer).
      query_key_dim: D, the length of query and key vectors.
      similarity: how a query and a key are compared: "squared_difference", "absolute_difference" or
        "multiplication" (Eqns. 3 to 5).
      scale: multiplies the similarity. None is the paper's: 1, or 1 / sqrt(D) for multiplication.
      normalization: how the weights of a window are normalised: "softmax" or "none".
      prior: geometric prior: "network", "table" (the paper's G*) or "none" (its NG).
      prior_hidden: hidden width of the prior networks, None for each layer's number of groups.
      prior_stddev: standard deviation of their initial output weights. With 0.01 a prior starts
        almost flat, as a box blur. With 1 each group starts with a different window, which learns
        faster in short runs.
      scope: what a local relation of the blocks sees: "local" (the kernel) or "full" (the whole
        image).
      full_image_pool: how much coarser keys and values are than the output, per side, one number
        for each stage. Only scope "full" and non-local layers need it.
      image_size: side of the input images in pixels. Only scope "full" needs it, for prior tables,
        and to fold prior networks into tables.
      non_local_blocks: whether a non-local block follows every residual block.
      zero_gamma: whether the last batch normalisation of each block starts at 0.
      batch_norm_images: images that share batch statistics, None for all images of a device.
      batch_norm_axis: name of a device axis to take batch statistics over.
      dtype: type of the activations. Parameters and statistics are float32.
      implementation: which one of `pallas_kernels.local_relation` computes, None for the fastest
        that runs.
      in_channels: channels of the images.
      remat: what the backward pass computes again instead of keeping it: "none", "stem" (stem and
        pool) or "blocks" (those, and the widest map in the first third of the blocks). What is kept
        is in `lrnet_jax/layers/kept.py`. False and True, of older checkpoints, are "none" and
        "blocks". By a model, "blocks" takes 0.78 of the memory of "none" and 3 % more time
        (LR-Net-50, batch 128, H100; docs/gpu_kernels.md).

    Raises:
      TypeError: a field has a value of the wrong type.
      ValueError: a value is out of range, or two fields exclude each other.

    Source: Sections 4 and 5 of the paper; Table 1 is the architecture.
    """

    block: BlockKind = "bottleneck"
    depths: tuple[int, ...] = (2, 2, 2, 2)
    operator: Operator = "local_relation"
    width: int = 101
    stage_channels: tuple[int, ...] | int | None = None
    stem: StemKind = "local_relation"
    stem_strides: int = 2
    stem_pool: bool = True
    stem_channels: int = 64
    stem_kernel_size: int = 7
    stem_channels_per_group: int = 8
    kernel_size: int = 7
    channels_per_group: int = 8
    query_key_dim: int = 1
    similarity: Similarity = "squared_difference"
    scale: float | None = None
    normalization: Normalization = "softmax"
    prior: Prior = "network"
    prior_hidden: int | None = None
    prior_stddev: float = 0.01
    scope: Scope = "local"
    full_image_pool: tuple[int, ...] = (4, 2, 2, 1)
    image_size: int | None = None
    non_local_blocks: bool = False
    zero_gamma: bool = False
    batch_norm_images: int | None = None
    batch_norm_axis: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    implementation: str | None = None
    in_channels: int = 3
    remat: Remat = "none"

    def __post_init__(self) -> None:
        for name in ("depths", "stage_channels", "full_image_pool"):
            if isinstance(getattr(self, name), list):  # as JSON has it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.remat, bool):  # as older checkpoints have it
            object.__setattr__(self, "remat", "blocks" if self.remat else "none")
        hints = typing.get_type_hints(Variant)
        for field in dataclasses.fields(self):
            _check_choice(field.name, hints[field.name], getattr(self, field.name))
            _check_number(field.name, hints[field.name], getattr(self, field.name))
        _check_stages(self)
        _check_combinations(self)

    @property
    def uses_pool(self) -> bool:
        """Whether any layer reads a pooled image."""
        return self.scope == "full" or self.operator == "non_local" or self.non_local_blocks

    @property
    def recomputed_blocks(self) -> int:
        """In how many of the first blocks the backward pass computes something again.

        With remat="blocks" it is the first third. Their maps are the largest, and memory bounds the
        products of the first stages, so that a byte costs the least time there.
        """
        return max(1, sum(self.depths) // 3) if self.remat == "blocks" else 0

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the residual stream at each stage."""
        if isinstance(self.stage_channels, tuple):
            return self.stage_channels
        first = self.stage_channels or {"bottleneck": 256, "basic": 64}[self.block]
        return tuple(first * 2**stage for stage in range(len(self.depths)))


def _check_choice(name: str, hint: object, value: object) -> None:
    """Raises unless the value of a field that is a choice, a switch or a name is one."""
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
    elif name == "implementation" and isinstance(value, str) and value not in IMPLEMENTATIONS:
        near = difflib.get_close_matches(value, IMPLEMENTATIONS, n=1)
        raise ValueError(
            f"implementation must be None or one of {', '.join(IMPLEMENTATIONS)}; got {value!r}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    elif hint is bool and not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    elif hint == str | None and not (value is None or isinstance(value, str)):
        raise TypeError(f"{name} must be a string or None, got {value!r}")


def _check_number(name: str, hint: object, value: object) -> None:
    """Raises unless the value of a field that is a number is one in its range."""
    if name in ("kernel_size", "stem_kernel_size"):
        check_odd(name, value)
    elif name == "channels_per_group":
        if value != -1:
            check_positive(name, value, " or -1 for all")
    elif hint is int or (hint == int | None and value is not None):
        check_positive(name, value)
    elif name == "prior_stddev":
        _check_prior_stddev(value)
    elif name == "scale" and value is not None:
        _check_scale(value)


def _check_prior_stddev(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"prior_stddev must be a number, got {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"prior_stddev must be finite and at least 0, got {value}")


def _check_scale(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"scale must be a number or None, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"scale must be finite, got {value!r}; use None for the paper's")


def _check_stages(variant: Variant) -> None:
    """Raises unless the fields with a number for each stage hold that many ints of at least 1."""
    for name in ("depths", "full_image_pool"):
        numbers = getattr(variant, name)
        if not isinstance(numbers, tuple) or not numbers:
            raise TypeError(f"{name} must be a tuple of ints such as (2, 2, 2, 2), got {numbers!r}")
        for number in numbers:
            check_positive(name, number)
    channels, stages = variant.stage_channels, len(variant.depths)
    for number in channels if isinstance(channels, tuple) else (channels,):
        if channels is not None:
            check_positive("stage_channels", number)
    if isinstance(channels, tuple) and len(channels) != stages:
        raise ValueError(
            f"stage_channels must have one number for each of the {stages} stages, got {channels}; "
            "give one number to double it with each stage"
        )
    if variant.uses_pool and len(variant.full_image_pool) != stages:
        raise ValueError(
            f"full_image_pool must have one number for each of the {stages} stages, got "
            f"{variant.full_image_pool}"
        )


def _check_combinations(variant: Variant) -> None:
    """Raises if fields that are right by themselves do not fit together."""
    if variant.scope == "full" and variant.operator != "local_relation":
        raise ValueError(
            f"scope 'full' is a scope of local relations, got operator {variant.operator!r}; "
            "use scope='local'"
        )
    if variant.scope == "full" and variant.prior == "table" and variant.image_size is None:
        raise ValueError(
            "scope 'full' with prior 'table' learns tables of the size of the image; "
            "give image_size, such as 224"
        )
    if variant.batch_norm_images is not None and variant.batch_norm_axis is not None:
        raise ValueError(
            f"batch_norm_images {variant.batch_norm_images} and batch_norm_axis "
            f"{variant.batch_norm_axis!r} exclude each other; set one of them to None"
        )
