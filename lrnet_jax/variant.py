"""What a network is, as plain data: the fields of a variant, and the layers that follow from them.

`networks.Network` builds modules from this and `complexity.count` counts from it.
"""

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Literal

from lrnet_jax.checks import check_odd, check_positive
from lrnet_jax.layers.geometric_prior import Prior
from pallas_kernels.spec import Normalization, Similarity

Block = Literal["bottleneck", "basic"]
Operator = Literal["local_relation", "convolution", "depthwise", "non_local"]
Stem = Literal["local_relation", "convolution"]
Scope = Literal["local", "full"]
Kind = Literal["channel_transformation", Operator, "full_image"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A residual network with a spatial operator to choose; the defaults are LR-Net-26.

    Hashable and JSON-serialisable: `Variant(**json.loads(json.dumps(dataclasses.asdict(v)))) == v`.

    Attributes:
      block: "bottleneck" (CT to the width, operator, CT to the stage's channels) or "basic" (two
        operators at the width: CT, operator, CT, operator, CT; convolutions need no CTs).
      depths: number of blocks of each stage, any number of stages.
      operator: spatial layer of the blocks: "local_relation", "convolution", "depthwise" or
        "non_local".
      width: channels of the operators in the first stage; doubles with each stage.
      stage_channels: channels of the residual stream, one number for each stage, or the first
        stage's, which doubles. None: 256 for bottleneck and 64 for basic blocks.
      stem: "local_relation" (CT, local relation) or "convolution".
      stem_strides: of the stem's spatial layer; 1 for small images.
      stem_pool: whether a 3x3 max pool of stride 2 follows; not for small images.
      stem_channels: channels of the stem.
      stem_kernel_size: odd kernel size of the stem.
      stem_channels_per_group: m of the stem's local relation, whose query and key are scalars
        whatever `query_key_dim` is: ablations of the blocks leave the stem as it is.
      kernel_size: odd kernel size of the blocks' operators.
      channels_per_group: m, channels that share a weight; -1 for all (one group per layer).
      query_key_dim: D, length of query and key vectors.
      similarity: "squared_difference", "absolute_difference" or "multiplication" (Eqns. 3 to 5).
      scale: multiplies the similarity; None for the paper's: 1, or 1 / sqrt(D) for multiplication.
      normalization: "softmax" or "none".
      prior: geometric prior: "network", "table" (the paper's G*) or "none" (its NG).
      prior_hidden: hidden width of the prior networks, None for each layer's number of groups.
      prior_stddev: standard deviation of their initial output weights. 0.01 starts with an almost
        flat prior, a box blur; 1 with a different window for each group, which learns faster in
        short runs.
      scope: of the blocks' local relations: "local" (the kernel) or "full" (the whole image).
      full_image_pool: for "full" and for non-local layers, how much coarser keys and values are
        than the output, per side, one number for each stage.
      image_size: side of the input images; needed only by scope "full" with prior "table", and to
        fold its networks into tables, whose size depends on it.
      non_local_blocks: whether a non-local block follows every residual block.
      zero_gamma: whether the last batch normalisation of each block starts at 0.
      batch_norm_images: images that share batch statistics, None for all images of a device.
      batch_norm_axis: name of a device axis to take batch statistics over.
      dtype: of activations, "float32" or "bfloat16"; parameters and statistics are float32.
      implementation: of `pallas_kernels.api`, None for the fastest that runs.
      in_channels: channels of the images.
      remat: whether the backward pass computes each block again instead of keeping its
        activations: less memory, a third more time.
    """

    block: Block = "bottleneck"
    depths: tuple[int, ...] = (2, 2, 2, 2)
    operator: Operator = "local_relation"
    width: int = 101
    stage_channels: tuple[int, ...] | int | None = None
    stem: Stem = "local_relation"
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
    remat: bool = False

    def __post_init__(self) -> None:
        for name in ("depths", "stage_channels", "full_image_pool"):
            if isinstance(getattr(self, name), list):  # as JSON has it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_choices(self)
        _check_numbers(self)
        stages = len(self.depths)
        if isinstance(self.stage_channels, tuple) and len(self.stage_channels) != stages:
            raise ValueError(
                f"stage_channels must have one number for each of the {stages} stages, got "
                f"{self.stage_channels}; give one number to double it with each stage"
            )
        if self.uses_pool and len(self.full_image_pool) != stages:
            raise ValueError(
                f"full_image_pool must have one number for each of the {stages} stages, got "
                f"{self.full_image_pool}"
            )
        if self.scope == "full" and self.operator != "local_relation":
            raise ValueError(
                f"scope 'full' is a scope of local relations, got operator {self.operator!r}; "
                "use scope='local'"
            )
        if self.scope == "full" and self.prior == "table" and self.image_size is None:
            raise ValueError(
                "scope 'full' with prior 'table' learns tables of the size of the image; "
                "give image_size, such as 224"
            )
        if self.batch_norm_images is not None and self.batch_norm_axis is not None:
            raise ValueError(
                f"batch_norm_images {self.batch_norm_images} and batch_norm_axis "
                f"{self.batch_norm_axis!r} exclude each other; set one of them to None"
            )

    @property
    def uses_pool(self) -> bool:
        """Whether any layer looks at a pooled image."""
        return self.scope == "full" or self.operator == "non_local" or self.non_local_blocks

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the residual stream at each stage."""
        if isinstance(self.stage_channels, tuple):
            return self.stage_channels
        first = self.stage_channels or {"bottleneck": 256, "basic": 64}[self.block]
        return tuple(first * 2**stage for stage in range(len(self.depths)))

    def stem_layers(self) -> tuple["Layer", ...]:
        """The layers of the stem, each followed by batch normalisation and ReLU."""
        spatial = {
            "in_features": self.stem_channels,
            "out_features": self.stem_channels,
            "strides": self.stem_strides,
            "kernel_size": self.stem_kernel_size,
        }
        if self.stem == "convolution":
            return (Layer("convolution", **{**spatial, "in_features": self.in_channels}),)
        return (
            Layer("channel_transformation", self.in_channels, self.stem_channels),
            Layer(
                "local_relation",
                **spatial,
                channels_per_group=self.stem_channels_per_group,
            ),
        )

    def blocks(self) -> Iterator["BlockPlan"]:
        """The residual blocks in order; a stage's first one holds its stride and new channels."""
        before = self.stem_channels
        for stage, (depth, channels) in enumerate(zip(self.depths, self.channels, strict=True)):
            for index in range(depth):
                strides = 2 if index == 0 and stage > 0 else 1
                shortcut = None
                if strides > 1 or before != channels:
                    shortcut = Layer("channel_transformation", before, channels, strides)
                branch = self._branch(stage, before, channels, strides)
                yield BlockPlan(stage, index, branch, shortcut)
                before = channels

    def _branch(self, stage: int, before: int, channels: int, strides: int) -> tuple["Layer", ...]:
        width = self.width * 2**stage
        if self.block == "basic" and self.operator == "convolution":
            return (
                Layer("convolution", before, width, strides, self.kernel_size),
                Layer("convolution", width, channels, 1, self.kernel_size),
            )
        full = self.scope == "full"
        per_group = width if self.channels_per_group == -1 else self.channels_per_group

        def operator(strides: int) -> Layer:
            return Layer(
                "full_image" if full else self.operator,
                width,
                width,
                strides,
                kernel_size=self.kernel_size,
                channels_per_group=per_group,
                query_key_dim=self.query_key_dim,
                pool=self.full_image_pool[stage] if self.uses_pool else 1,
            )

        layers = [Layer("channel_transformation", before, width), operator(strides)]
        if self.block == "basic":
            layers += [Layer("channel_transformation", width, width), operator(1)]
        return (*layers, Layer("channel_transformation", width, channels))


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a network, before batch normalisation.

    Attributes:
      kind: a channel transformation, or which spatial operator.
      in_features: channels of the input.
      out_features: channels of the output.
      strides: of the output grid.
      kernel_size: of operators with a kernel.
      channels_per_group: m, of local relations.
      query_key_dim: D, of local relations.
      pool: how much coarser keys and values are than the output (full image and non-local).
    """

    kind: Kind
    in_features: int
    out_features: int
    strides: int = 1
    kernel_size: int = 1
    channels_per_group: int = 1
    query_key_dim: int = 1
    pool: int = 1

    @property
    def groups(self) -> int:
        """G = ceil(C / m)."""
        return -(-self.in_features // self.channels_per_group)


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """One residual block: relu(branch(x) + shortcut(x)).

    Attributes:
      stage: index of the stage, from 0.
      index: index within the stage, from 0.
      branch: the layers, each followed by batch normalisation and all but the last by ReLU.
      shortcut: the channel transformation of the shortcut, None for the identity.
    """

    stage: int
    index: int
    branch: tuple[Layer, ...]
    shortcut: Layer | None


def _check_choices(variant: Variant) -> None:
    hints = typing.get_type_hints(Variant)
    for field in dataclasses.fields(Variant):
        value, hint = getattr(variant, field.name), hints[field.name]
        if typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            if value not in choices:
                raise ValueError(f"{field.name} must be one of {', '.join(choices)}; got {value!r}")
        elif hint is bool and not isinstance(value, bool):
            raise TypeError(f"{field.name} must be True or False, got {value!r}")
        elif hint == (str | None) and not (value is None or isinstance(value, str)):
            raise TypeError(f"{field.name} must be a string or None, got {value!r}")


def _check_numbers(variant: Variant) -> None:
    for name in ("depths", "full_image_pool"):
        numbers = getattr(variant, name)
        if not isinstance(numbers, tuple) or not numbers:
            raise TypeError(f"{name} must be a tuple of ints such as (2, 2, 2, 2), got {numbers!r}")
        for number in numbers:
            check_positive(name, number)
    channels = variant.stage_channels
    if channels is not None:
        for number in channels if isinstance(channels, tuple) else (channels,):
            check_positive("stage_channels", number)
    for name in (
        "width",
        "stem_strides",
        "stem_channels",
        "stem_channels_per_group",
        "query_key_dim",
        "in_channels",
    ):
        check_positive(name, getattr(variant, name))
    for name in ("prior_hidden", "image_size", "batch_norm_images"):
        if getattr(variant, name) is not None:
            check_positive(name, getattr(variant, name))
    for name in ("kernel_size", "stem_kernel_size"):
        check_odd(name, getattr(variant, name))
    if variant.channels_per_group != -1:
        check_positive("channels_per_group", variant.channels_per_group, " or -1 for all")
    stddev = variant.prior_stddev
    if isinstance(stddev, bool) or not isinstance(stddev, int | float):
        raise TypeError(f"prior_stddev must be a number, got {stddev!r}")
    if not 0 <= stddev < math.inf:
        raise ValueError(f"prior_stddev must be finite and at least 0, got {stddev}")
    scale = variant.scale
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
        raise TypeError(f"scale must be a number or None, got {scale!r}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale!r}; use None for the paper's")
