"""The networks: stem, stages of residual blocks, head, with the spatial operator as a parameter."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lrnet_jax.layers.batch_norm import BatchNorm
from lrnet_jax.layers.channel_transformation import channel_transformation, fan_in_normal
from lrnet_jax.layers.full_image import FullImageRelation
from lrnet_jax.layers.local_relation import LocalRelation
from lrnet_jax.layers.non_local import NonLocal, NonLocalBlock
from lrnet_jax.variant import BlockPlan, Layer, Variant

__all__ = ["Network", "Variant", "fold_priors"]


class Network(nnx.Module):
    """The residual network that a variant describes.

    Its state is `nnx.Param` and `nnx.BatchStat` variables only. It starts in training mode, where
    each call moves the running averages of batch normalisation; `eval()` makes it a pure function
    of the images.

    Args:
      variant: what to build.
      num_classes: number of logits.
      rngs: where the initial weights come from; not kept.

    Attributes:
      variant: as given. After `fold_priors` it says prior="table", so it always rebuilds a
        network with the same state.
      num_classes: as given.
    """

    def __init__(self, variant: Variant, num_classes: int = 1000, *, rngs: nnx.Rngs) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.variant = variant
        self.num_classes = num_classes
        grid = variant.image_size or 0  # size of the image that a layer puts out, 0 if not known
        layers = []
        for layer in variant.stem_layers():
            grid = _strided(grid, layer.strides)
            layers.append(Normalized(variant, layer, grid, rngs))
        self.stem = nnx.List(layers)
        grid = _strided(grid, 2 if variant.stem_pool else 1)

        stages: list[list[Block]] = [[] for _ in variant.depths]
        for plan in variant.blocks():
            grid = _strided(grid, plan.branch[1 if len(plan.branch) > 2 else 0].strides)
            stages[plan.stage].append(Block(variant, plan, grid, rngs))
        self.stages = nnx.List([nnx.List(blocks) for blocks in stages])
        self.head = channel_transformation(
            variant.channels[-1], num_classes, use_bias=True, dtype=jnp.float32, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Normalised images (B, H, W, in_channels) -> logits (B, num_classes) float32."""
        last = self.features(images)[f"res{len(self.stages) + 1}"]
        return self.head(jnp.mean(last, (1, 2), dtype=jnp.float32))

    def features(self, images: jax.Array) -> dict[str, jax.Array]:
        """The feature maps for dense tasks, in the variant's dtype.

        Returns:
          "res1": the stem before its pool; "res2", "res3", ...: the stages. With the default stem
          their strides are 2, 4, 8, and so on.

        Raises:
          ValueError: images are not (B, H, W, in_channels).
        """
        channels = self.variant.in_channels
        if images.ndim != 4 or images.shape[-1] != channels:
            raise ValueError(
                f"images must be (B, H, W, {channels}), got {images.shape}; "
                "add a batch axis with images[None], or set in_channels"
            )
        x = images.astype(self.variant.dtype)
        for layer in self.stem:
            x = jax.nn.relu(layer(x))
        features = {"res1": x}
        if self.variant.stem_pool:
            x = _max_pool(x)
        for stage, blocks in enumerate(self.stages):
            for block in blocks:
                x = nnx.remat(Block.__call__)(block, x) if self.variant.remat else block(x)
            features[f"res{stage + 2}"] = x
        return features


class Block(nnx.Module):
    """relu(branch(x) + shortcut(x)), and then a non-local block where the variant has them."""

    def __init__(self, variant: Variant, plan: BlockPlan, grid: int, rngs: nnx.Rngs) -> None:
        last = len(plan.branch) - 1
        self.branch = nnx.List(
            [
                Normalized(variant, layer, grid, rngs, variant.zero_gamma and index == last)
                for index, layer in enumerate(plan.branch)
            ]
        )
        channels = plan.branch[-1].out_features
        self.shortcut = (
            None if plan.shortcut is None else Normalized(variant, plan.shortcut, grid, rngs)
        )
        self.non_local = (
            NonLocalBlock(
                channels,
                pool=variant.full_image_pool[plan.stage],
                norm=_batch_norm(variant, channels, zero=True),
                dtype=jnp.dtype(variant.dtype),
                rngs=rngs,
            )
            if variant.non_local_blocks
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, Ho, Wo, C of the stage)."""
        y = x
        for index, layer in enumerate(self.branch):
            y = layer(y if index == 0 else jax.nn.relu(y))
        y = jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))
        return y if self.non_local is None else self.non_local(y)


class Normalized(nnx.Module):
    """A layer and its batch normalisation."""

    def __init__(
        self,
        variant: Variant,
        layer: Layer,
        grid: int,
        rngs: nnx.Rngs,
        zero_gamma: bool = False,
    ) -> None:
        self.strides = layer.strides if layer.kind == "channel_transformation" else 1
        self.layer = _make_layer(variant, layer, grid, rngs)
        self.norm = _batch_norm(variant, layer.out_features, zero=zero_gamma)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, Ho, Wo, C of the layer)."""
        s = self.strides
        return self.norm(self.layer(x[:, ::s, ::s] if s > 1 else x))


def fold_priors(model: Network) -> Network:
    """A copy for inference, with every prior network replaced by the table of its values.

    The logits stay the same. The copy's variant says prior="table" (the paper's G* has the same
    form), so variant and state of a folded network rebuild it as any other's do. A network
    without prior networks is copied as it is.

    Raises:
      ValueError: the scope is "full" and the variant has no image_size to fold for.
    """
    folded = nnx.clone(model)
    if model.variant.prior != "network":
        return folded
    for _, module in nnx.iter_modules(folded):
        if isinstance(module, LocalRelation | FullImageRelation):
            module.fold_prior()
    folded.variant = dataclasses.replace(model.variant, prior="table")
    return folded


def _make_layer(
    variant: Variant, layer: Layer, grid: int, rngs: nnx.Rngs
) -> LocalRelation | FullImageRelation | NonLocal | nnx.Conv | nnx.Linear:
    dtype = jnp.dtype(variant.dtype)
    features = (layer.in_features, layer.out_features)
    if layer.kind == "channel_transformation":
        return channel_transformation(*features, dtype=dtype, rngs=rngs)
    if layer.kind == "non_local":
        return NonLocal(
            *features,
            max(layer.in_features // 2, 1),
            strides=layer.strides,
            pool=layer.pool,
            dtype=dtype,
            rngs=rngs,
        )
    if layer.kind in ("convolution", "depthwise"):
        return nnx.Conv(
            *features,
            (layer.kernel_size, layer.kernel_size),
            strides=layer.strides,
            # Not "SAME", whose outputs are not centred on pixel i * strides of an even image.
            padding=layer.kernel_size // 2,
            feature_group_count=layer.in_features if layer.kind == "depthwise" else 1,
            use_bias=False,
            dtype=dtype,
            kernel_init=fan_in_normal,
            rngs=rngs,
        )
    relation: dict[str, Any] = {
        "strides": layer.strides,
        "channels_per_group": layer.channels_per_group,
        "query_key_dim": layer.query_key_dim,
        "similarity": variant.similarity,
        "scale": variant.scale,
        "normalization": variant.normalization,
        "prior": variant.prior,
        "prior_hidden": variant.prior_hidden,
        "prior_stddev": variant.prior_stddev,
        "dtype": dtype,
        "rngs": rngs,
    }
    if layer.kind == "full_image":
        size = (grid, grid) if grid > 0 else None
        return FullImageRelation(*features, pool=layer.pool, output_size=size, **relation)
    return LocalRelation(
        *features,
        kernel_size=layer.kernel_size,
        implementation=variant.implementation,
        **relation,
    )


def _batch_norm(variant: Variant, features: int, *, zero: bool) -> BatchNorm:
    return BatchNorm(
        features,
        scale_init=0.0 if zero else 1.0,
        group_images=variant.batch_norm_images,
        axis_name=variant.batch_norm_axis,
    )


def _max_pool(x: jax.Array) -> jax.Array:
    """Maxima of 3 x 3 windows at stride 2, border 1: (B, H, W, C) -> (B, Ho, Wo, C).

    From shifted images, not nnx.max_pool: on a CPU the gradient of XLA's windowed maximum takes
    seven times as long, and on a GPU it adds up in any order, so that runs would not repeat. Of
    equal maxima each gets a share of the gradient; after a ReLU those are zeros, which pass none.
    """
    for axis in (1, 2):
        size = _strided(x.shape[axis], 2)
        border = [(0, 0)] * 4
        border[axis] = (1, 1)
        padded = jnp.pad(x, border, constant_values=-jnp.inf)
        parts = [jax.lax.slice_in_dim(padded, a, a + 2 * size - 1, 2, axis) for a in range(3)]
        x = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
    return x


def _strided(size: int, strides: int) -> int:
    return (size - 1) // strides + 1
