"""The arrays of a network under the names and in the layout of a file of weights.

    layout "torch"       torchvision's and timm's ResNets: conv1.weight, layer1.0.bn1.running_mean,
                         fc.bias; kernels are (out, in, height, width)
    layout "lrnet_jax"   any network, with our own paths: params.stem.0.layer.kernel, arrays as
                         they are here

A ResNet of either library strides in its 3x3 convolution, pads by half the kernel and adds 1e-5 to
variances, as ours does. Only names and the order of axes differ.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import numpy as np
from flax import nnx

from lrnet_jax.functional import split
from lrnet_jax.model_zoo import create_from_variant
from lrnet_jax.plan import BlockPlan, LayerPlan, plan_blocks, plan_stem
from lrnet_jax.training.checkpoints import flatten
from lrnet_jax.variant import Variant

Layout = Literal["torch", "lrnet_jax"]
Kind = Literal["same", "convolution", "channel_transformation", "linear"]

COUNTERS = "num_batches_tracked"  # how often torch has updated a running average; nothing reads it


class Tensor(NamedTuple):
    """One array in two forms.

    Attributes:
      path: here, such as "params/stem/0/layer/kernel".
      name: in the file, such as "conv1.weight".
      kind: how its axes differ.
      shape: in the file.
    """

    path: str
    name: str
    kind: Kind
    shape: tuple[int, ...]

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """The array of a file in our order of axes, float32."""
        if self.kind == "convolution":  # (O, I, H, W) -> (H, W, I, O)
            array = array.transpose(2, 3, 1, 0)
        elif self.kind == "channel_transformation":  # (O, I, 1, 1) -> (I, O)
            array = array[:, :, 0, 0].T
        elif self.kind == "linear":  # (O, I) -> (I, O)
            array = array.T
        return np.ascontiguousarray(array, np.float32)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """The opposite of `to_ours`."""
        if self.kind == "convolution":
            array = array.transpose(3, 2, 0, 1)
        elif self.kind in ("channel_transformation", "linear"):
            array = array.T
        return np.ascontiguousarray(array.reshape(self.shape), np.float32)


def layout_of(variant: Variant) -> Layout:
    """The layout in which a network is written: "torch" for a ResNet, else "lrnet_jax"."""
    is_resnet = (
        variant.stem == "convolution"
        and variant.operator == "convolution"
        and not variant.non_local_blocks
    )
    return "torch" if is_resnet else "lrnet_jax"


def tensors(variant: Variant, num_classes: int) -> list[Tensor]:
    """All arrays of a network, in the layout in which it is written."""
    if layout_of(variant) == "torch":
        return list(_torch_tensors(variant, num_classes))
    shapes = own_shapes(variant, num_classes)
    return [
        Tensor(path, path.replace("/", "."), "same", leaf.shape) for path, leaf in shapes.items()
    ]


def own_shapes(variant: Variant, num_classes: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a network by our paths, from the network itself."""
    abstract = nnx.eval_shape(lambda: create_from_variant(variant, num_classes, nnx.Rngs(0)))
    _, params, batch_stats = split(abstract)
    return flatten({"params": params, "batch_stats": batch_stats})


def head_name(variant: Variant) -> str:
    """The name of the head's weights, whose shape has the number of classes."""
    return "fc.weight" if layout_of(variant) == "torch" else "params.head.kernel"


def classes_in(variant: Variant, shape: tuple[int, ...]) -> int:
    """The number of classes of a head with weights of this shape, as they are in a file."""
    return shape[0] if layout_of(variant) == "torch" else shape[-1]


def _torch_tensors(variant: Variant, num_classes: int) -> Iterator[Tensor]:
    (stem,) = plan_stem(variant)
    yield from _normalized("stem/0", "conv1", "bn1", stem)
    for block in plan_blocks(variant):
        yield from _block(block)
    features = variant.channels[-1]
    yield Tensor("params/head/kernel", "fc.weight", "linear", (num_classes, features))
    yield Tensor("params/head/bias", "fc.bias", "same", (num_classes,))


def _block(block: BlockPlan) -> Iterator[Tensor]:
    ours = f"stages/{block.stage}/{block.index}"
    theirs = f"layer{block.stage + 1}.{block.index}"
    for number, layer in enumerate(block.branch):
        yield from _normalized(
            f"{ours}/branch/{number}",
            f"{theirs}.conv{number + 1}",
            f"{theirs}.bn{number + 1}",
            layer,
        )
    if block.shortcut is not None:
        names = f"{theirs}.downsample.0", f"{theirs}.downsample.1"
        yield from _normalized(f"{ours}/shortcut", *names, block.shortcut)


def _normalized(ours: str, layer: str, norm: str, plan: LayerPlan) -> Iterator[Tensor]:
    """A convolution and its batch normalisation."""
    kind: Kind = "convolution" if plan.kind == "convolution" else "channel_transformation"
    shape = (plan.out_features, plan.in_features, plan.kernel_size, plan.kernel_size)
    yield Tensor(f"params/{ours}/layer/kernel", f"{layer}.weight", kind, shape)
    for path, name in (
        (f"params/{ours}/norm/scale", "weight"),
        (f"params/{ours}/norm/bias", "bias"),
        (f"batch_stats/{ours}/norm/mean", "running_mean"),
        (f"batch_stats/{ours}/norm/var", "running_var"),
    ):
        yield Tensor(path, f"{norm}.{name}", "same", (plan.out_features,))
