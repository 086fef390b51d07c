"""Parameters and multiply-adds of each layer of a network, by formula, without building it.

The convention is the paper's. Parameters are the weights of convolutions, channel transformations
and the head, the bias of the head, and the geometric priors. Batch normalisation and the biases of
non-local layers are left out. Multiply-adds (MACs) are those of the same layers, of the
similarities and of the aggregation; taps outside the image count. Batch normalisation, softmax and
pools are left out, and so are the prior networks, which do not run once for every image.
"""

from typing import NamedTuple

from lrnet_jax.layers.full_image import differences
from lrnet_jax.layers.non_local import inner_features
from lrnet_jax.plan import LayerPlan, plan_blocks, plan_stem
from lrnet_jax.variant import Variant
from pallas_kernels.spec import strided_size


class LayerCost(NamedTuple):
    """The cost of one layer.

    Attributes:
      name: path of the layer's module in the network, such as "stages.0.1.branch.2.layer".
      output: (Ho, Wo, C) of its output.
      parameters: number of weights.
      macs: multiply-adds for one image.
    """

    name: str
    output: tuple[int, int, int]
    parameters: int
    macs: int


class NetworkCost(NamedTuple):
    """The cost of every layer of a network, and their sums."""

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """Parameters of the network."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return sum(layer.macs for layer in self.layers)


def network_cost(
    variant: Variant, num_classes: int = 1000, image_size: int | tuple[int, int] | None = None
) -> NetworkCost:
    """Counts the parameters and multiply-adds of a network.

    Args:
      variant: the network.
      num_classes: number of logits.
      image_size: side of the image in pixels, or (H, W). None is the variant's image_size, or 224
        if it has none.
    """
    image_size = image_size or variant.image_size or 224
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    layers = []

    def add(name: str, plan: LayerPlan, size: tuple[int, int]) -> tuple[int, int]:
        cost = _layer_cost(f"{name}.layer", variant, plan, size)
        layers.append(cost)
        return cost.output[:2]

    for index, plan in enumerate(plan_stem(variant)):
        size = add(f"stem.{index}", plan, size)
    if variant.stem_pool:
        size = _strided(size, 2)

    for block in plan_blocks(variant):
        name = f"stages.{block.stage}.{block.index}"
        before = size
        for index, plan in enumerate(block.branch):
            size = add(f"{name}.branch.{index}", plan, size)
        if block.shortcut is not None:
            add(f"{name}.shortcut", block.shortcut, before)
        if variant.non_local_blocks:
            channels, pool = block.branch[-1].out_features, variant.full_image_pool[block.stage]
            add(f"{name}.non_local", LayerPlan("non_local", channels, channels, pool=pool), size)

    channels = variant.channels[-1]
    layers.append(
        LayerCost("head", (1, 1, num_classes), (channels + 1) * num_classes, channels * num_classes)
    )
    return NetworkCost(tuple(layers))


def _layer_cost(name: str, variant: Variant, plan: LayerPlan, size: tuple[int, int]) -> LayerCost:
    ho, wo = _strided(size, plan.strides)
    outputs, taps = ho * wo, plan.kernel_size**2
    match plan.kind:
        case "channel_transformation" | "convolution":
            parameters = taps * plan.in_features * plan.out_features
            macs = parameters * outputs
        case "depthwise":
            parameters = taps * plan.in_features
            macs = parameters * outputs
        case "local_relation":
            parameters = _relation_parameters(variant, plan, positions=taps)
            macs = _relation_macs(plan, outputs, keys=size[0] * size[1], window=taps)
        case "full_image":
            positions = len(differences(ho, plan.pool)) * len(differences(wo, plan.pool))
            cells = _cells(ho, wo, plan.pool)
            parameters = _relation_parameters(variant, plan, positions)
            macs = _relation_macs(plan, outputs, keys=cells, window=cells)
        case "non_local":
            c, c_out, inner = plan.in_features, plan.out_features, inner_features(plan.in_features)
            cells = _cells(ho, wo, plan.pool)
            parameters = 3 * c * inner + inner * c_out  # theta, phi, g, output
            macs = inner * (outputs * (c + c_out) + cells * 2 * c + 2 * outputs * cells)
    return LayerCost(name, (ho, wo, plan.out_features), parameters, macs)


def _relation_parameters(variant: Variant, plan: LayerPlan, positions: int) -> int:
    """Weights of query, key, output and prior; a prior table holds `positions` logits per group."""
    c, groups = plan.in_features, plan.groups
    hidden = variant.prior_hidden or groups
    prior = {
        "none": 0,
        "table": groups * positions,
        "network": 3 * hidden + (hidden + 1) * groups,
    }[variant.prior]
    return 2 * c * groups * plan.query_key_dim + c * plan.out_features + prior


def _relation_macs(plan: LayerPlan, outputs: int, keys: int, window: int) -> int:
    """Multiply-adds of a relation with `outputs` queries, `keys` keys and `window` keys a query."""
    c, depth = plan.in_features, plan.groups * plan.query_key_dim
    transformations = c * depth * (outputs + keys) + c * plan.out_features * outputs
    similarity_and_aggregation = window * outputs * (depth + c)
    return transformations + similarity_and_aggregation


def _cells(ho: int, wo: int, pool: int) -> int:
    """Number of cells of a pooled grid."""
    return -(-ho // pool) * -(-wo // pool)


def _strided(size: tuple[int, int], strides: int) -> tuple[int, int]:
    return strided_size(size[0], strides), strided_size(size[1], strides)
