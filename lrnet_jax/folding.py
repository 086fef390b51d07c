"""Batch normalisations folded into the linear layers before them, for programs that are exported.

Without an activation between them, norm(x @ w) = x @ (w * gain) + offset. The program reads and
writes no array less, but it has one multiplication less for each output.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lrnet_jax.layers.channel_transformation import ChannelTransformation
from lrnet_jax.layers.full_image import FullImageRelation
from lrnet_jax.layers.input_transformation import is_input
from lrnet_jax.layers.local_relation import LocalRelation
from lrnet_jax.layers.non_local import NonLocal, NonLocalBlock
from lrnet_jax.networks import Network
from lrnet_jax.normalized import Normalized


class Shift(nnx.Module):
    """What is left of a normalisation in evaluation whose factor is in the weights before it.

    Args:
      offset: (C,) float32.
    """

    use_running_average = True  # networks ask a normalisation for it

    def __init__(self, offset: jax.Array) -> None:
        self.offset = nnx.Param(offset)

    def __call__(self, x: jax.Array, *, relu: bool = False, multiple: int = 1) -> jax.Array:
        """(B, ..., C) -> the same shape and dtype; arguments as in `BatchNorm`."""
        offset = self.offset[...]
        y = (x + jnp.pad(offset, (0, -offset.shape[0] % multiple))).astype(x.dtype)
        return jnp.maximum(y, 0.0) if relu else y


def fold_norms(model: Network) -> Network:
    """A copy for inference, in which normalisations are part of the weights before them.

    The logits stay the same up to rounding. The variant does not describe the copy: it can be run
    and exported, and neither trained nor saved. The normalisation of a stem whose local relation
    takes the image's maps stays as it is, because that layer folds it by itself.
    """
    folded = nnx.clone(model)
    inputs = [layer.layer for layer in folded.stem if is_input(layer.layer)]
    with_maps = isinstance(folded.stem[-1].layer, LocalRelation)
    for _, module in list(nnx.iter_modules(folded)):
        if not isinstance(module, Normalized | NonLocalBlock):
            continue
        norm, linear = module.norm, _last(module.layer)
        if with_maps and any(linear is x for x in inputs):
            continue
        gain, offset = norm.gain_and_offset()
        linear.kernel[...] = linear.kernel[...] * gain  # the last axis is that of the output
        module.norm = Shift(offset)  # type: ignore[assignment]  # it is called as a norm is
    return folded


def _last(layer: object) -> nnx.Conv | ChannelTransformation:
    """The linear map that makes the output of a layer; it has no bias where a norm follows."""
    if isinstance(layer, LocalRelation | FullImageRelation | NonLocal):
        layer = layer.output
    assert isinstance(layer, nnx.Conv | ChannelTransformation)
    assert layer.bias is None
    return layer
