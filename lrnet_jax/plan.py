"""The layers that follow from a variant, as plain data.

`networks.Network` builds modules from a plan, and `complexity.network_cost` counts from it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple

from lrnet_jax.variant import Operator, Variant
from pallas_kernels.spec import strided_size

LayerKind = Literal["channel_transformation", Operator, "full_image"]


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """One layer of a network, before batch normalisation.

    Attributes:
      kind: a channel transformation, or which spatial operator.
      in_features: channels of the input.
      out_features: channels of the output.
      strides: of the output grid.
      kernel_size: of operators with a kernel.
      channels_per_group: m, of relations.
      query_key_dim: D, of relations.
      pool: how much coarser keys and values are than the output (full image and non-local).
      output_size: (Ho, Wo) of full-image relations, None if the variant has no image_size.
    """

    kind: LayerKind
    in_features: int
    out_features: int
    strides: int = 1
    kernel_size: int = 1
    channels_per_group: int = 1
    query_key_dim: int = 1
    pool: int = 1
    output_size: tuple[int, int] | None = None

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
      branch: the layers. Batch normalisation follows each, and ReLU each but the last.
      shortcut: the channel transformation of the shortcut, None for the identity.
    """

    stage: int
    index: int
    branch: tuple[LayerPlan, ...]
    shortcut: LayerPlan | None


class FeatureInfo(NamedTuple):
    """One feature map of a network.

    Attributes:
      name: its key in the result of `Network.features`.
      channels: C of the map.
      stride: pixels of the image for each pixel of the map.
    """

    name: str
    channels: int
    stride: int


def feature_info(variant: Variant) -> tuple[FeatureInfo, ...]:
    """The feature maps of a network, from the finest to the coarsest."""
    stride = variant.stem_strides
    maps = [FeatureInfo("res1", variant.stem_channels, stride)]
    stride *= 2 if variant.stem_pool else 1
    for stage, channels in enumerate(variant.channels):
        maps.append(FeatureInfo(f"res{stage + 2}", channels, stride * 2**stage))
    return tuple(maps)


def plan_stem(variant: Variant) -> tuple[LayerPlan, ...]:
    """The layers of the stem. Batch normalisation and ReLU follow each."""
    channels, strides = variant.stem_channels, variant.stem_strides
    kernel_size = variant.stem_kernel_size
    if variant.stem == "convolution":
        return (LayerPlan("convolution", variant.in_channels, channels, strides, kernel_size),)
    return (
        LayerPlan("channel_transformation", variant.in_channels, channels),
        LayerPlan(
            "local_relation",
            channels,
            channels,
            strides,
            kernel_size,
            channels_per_group=variant.stem_channels_per_group,
        ),
    )


def plan_blocks(variant: Variant) -> Iterator[BlockPlan]:
    """The residual blocks in order. The first of a stage has its stride and its new channels."""
    size = variant.image_size
    for strides in (variant.stem_strides, 2 if variant.stem_pool else 1):
        size = _output_size(size, strides)
    before = variant.stem_channels
    for stage, (depth, channels) in enumerate(zip(variant.depths, variant.channels, strict=True)):
        for index in range(depth):
            strides = 2 if index == 0 and stage > 0 else 1
            size = _output_size(size, strides)
            shortcut = None
            if strides > 1 or before != channels:
                shortcut = LayerPlan("channel_transformation", before, channels, strides)
            branch = _plan_branch(variant, stage, before, channels, strides, size)
            yield BlockPlan(stage, index, branch, shortcut)
            before = channels


def _plan_branch(
    variant: Variant, stage: int, before: int, channels: int, strides: int, size: int | None
) -> tuple[LayerPlan, ...]:
    width, kernel_size = variant.width * 2**stage, variant.kernel_size
    m = width if variant.channels_per_group == -1 else variant.channels_per_group
    if variant.block == "basic" and variant.operator == "convolution":
        return (
            LayerPlan("convolution", before, width, strides, kernel_size),
            LayerPlan("convolution", width, channels, 1, kernel_size),
        )
    operator = LayerPlan(
        "full_image" if variant.scope == "full" else variant.operator,
        in_features=width,
        out_features=width,
        strides=strides,
        kernel_size=kernel_size,
        channels_per_group=m,
        query_key_dim=variant.query_key_dim,
        pool=variant.full_image_pool[stage] if variant.uses_pool else 1,
        output_size=None if size is None else (size, size),
    )
    layers = [LayerPlan("channel_transformation", before, width), operator]
    if variant.block == "basic":
        layers.append(LayerPlan("channel_transformation", width, width))
        layers.append(dataclasses.replace(operator, strides=1))
    return (*layers, LayerPlan("channel_transformation", width, channels))


def _output_size(size: int | None, strides: int) -> int | None:
    return None if size is None else strided_size(size, strides)


def inner_multiple(variant: Variant) -> int:
    """The multiple to which the channels between the layers of a block are filled up."""
    groups_hold_it = variant.channels_per_group > 0 and variant.channels_per_group % 8 == 0
    local = variant.operator == "local_relation" and variant.scope == "local"
    return 8 if variant.dtype == "bfloat16" and local and groups_hold_it else 1
