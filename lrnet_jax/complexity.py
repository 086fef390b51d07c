"""Parameters and multiply-adds of a network, per layer, by formula: nothing is built or run.

The paper's convention: parameters are the weights of convolutions, channel transformations and
the head, the head's bias and the geometric priors; batch normalisation and the biases of
non-local layers are left out. Multiply-adds (MACs) are those of the same layers, of the
similarities and of the aggregation, with taps outside the image counted; batch normalisation,
softmax, pools and the prior networks, which run once and not for every image, are left out.
"""

import dataclasses

from lrnet_jax.variant import Layer, Variant


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
      name: path of the layer's module in the network, such as "stages.0.1.branch.2.layer".
      kind: what it is.
      output: (Ho, Wo, C) of its output.
      parameters: number of weights.
      macs: multiply-adds for one image.
    """

    name: str
    kind: str
    output: tuple[int, int, int]
    parameters: int
    macs: int


@dataclasses.dataclass(frozen=True)
class Count:
    """What `count` returns: the layers and their sums."""

    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """Parameters of the network."""
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return sum(row.macs for row in self.rows)


def count(
    variant: Variant, num_classes: int = 1000, image_size: int | tuple[int, int] | None = None
) -> Count:
    """Counts a network's layers.

    Args:
      variant: the network.
      num_classes: number of logits.
      image_size: side of the image, or (H, W); None for the variant's image_size or else 224.
    """
    image_size = image_size or variant.image_size or 224
    grid = (image_size, image_size) if isinstance(image_size, int) else image_size
    rows = []

    def add(name: str, layer: Layer, grid: tuple[int, int]) -> tuple[int, int]:
        row = _row(f"{name}.layer", variant, layer, grid)
        rows.append(row)
        return row.output[:2]

    for index, layer in enumerate(variant.stem_layers()):
        grid = add(f"stem.{index}", layer, grid)
    grid = _strided(grid, 2 if variant.stem_pool else 1)

    for block in variant.blocks():
        name = f"stages.{block.stage}.{block.index}"
        before = grid
        for index, layer in enumerate(block.branch):
            grid = add(f"{name}.branch.{index}", layer, grid)
        if block.shortcut is not None:
            add(f"{name}.shortcut", block.shortcut, before)
        if variant.non_local_blocks:
            channels, pool = block.branch[-1].out_features, variant.full_image_pool[block.stage]
            add(f"{name}.non_local", Layer("non_local", channels, channels, pool=pool), grid)

    channels = variant.channels[-1]
    head = (channels + 1) * num_classes
    rows.append(Row("head", "head", (1, 1, num_classes), head, channels * num_classes))
    return Count(tuple(rows))


def _row(name: str, variant: Variant, layer: Layer, grid: tuple[int, int]) -> Row:
    ho, wo = _strided(grid, layer.strides)
    hp, wp = -(-ho // layer.pool), -(-wo // layer.pool)
    pixels, outputs, cells = grid[0] * grid[1], ho * wo, hp * wp
    c, c_out = layer.in_features, layer.out_features
    taps = layer.kernel_size**2
    if layer.kind == "channel_transformation":
        parameters = c * c_out
        macs = parameters * outputs
    elif layer.kind == "convolution":
        parameters = taps * c * c_out
        macs = parameters * outputs
    elif layer.kind == "depthwise":
        parameters = taps * c
        macs = parameters * outputs
    elif layer.kind == "non_local":
        inner = max(c // 2, 1)
        parameters = 3 * c * inner + inner * c_out  # theta, phi, g, output
        macs = inner * (outputs * (c + c_out) + cells * 2 * c + 2 * outputs * cells)
    else:
        depth = layer.groups * layer.query_key_dim
        full = layer.kind == "full_image"
        window, keys = (cells, cells) if full else (taps, pixels)
        sizes = (_differences(ho, layer.pool), _differences(wo, layer.pool))
        positions = sizes[0] * sizes[1] if full else taps
        parameters = 2 * c * depth + c * c_out + _prior(variant, layer.groups, positions)
        # query, key, output; then similarity and aggregation
        macs = c * depth * (outputs + keys) + c * c_out * outputs + window * outputs * (depth + c)
    return Row(name, layer.kind, (ho, wo, c_out), parameters, macs)


def _prior(variant: Variant, groups: int, positions: int) -> int:
    if variant.prior == "none":
        return 0
    if variant.prior == "table":
        return groups * positions
    hidden = variant.prior_hidden or groups
    return 3 * hidden + (hidden + 1) * groups


def _differences(size: int, pool: int) -> int:
    """Distinct positions of output pixels relative to pooled cells on one axis."""
    return size + (-(-size // pool) - 1) * pool


def _strided(grid: tuple[int, int], strides: int) -> tuple[int, int]:
    return (grid[0] - 1) // strides + 1, (grid[1] - 1) // strides + 1
