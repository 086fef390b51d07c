"""The networks: stem, stages of residual blocks and head, built from the plan of a variant."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from lrnet_jax.checks import check_images, check_positive, check_rngs
from lrnet_jax.layers.activation import relu
from lrnet_jax.layers.channel_transformation import (
    ChannelTransformation,
    Multiples,
)
from lrnet_jax.layers.input_transformation import is_input, relate_input
from lrnet_jax.layers.kept import first_recomputed, keep, recomputed
from lrnet_jax.layers.local_relation import LocalRelation
from lrnet_jax.layers.non_local import NonLocalBlock
from lrnet_jax.layers.pooling import max_pool_3x3
from lrnet_jax.layers.relation import Relation
from lrnet_jax.normalized import Normalized, make_batch_norm
from lrnet_jax.plan import (
    BlockPlan,
    FeatureInfo,
    feature_info,
    inner_multiple,
    plan_blocks,
    plan_stem,
)
from lrnet_jax.variant import Variant
from pallas_kernels.pallas.stem import Maps


class Network(nnx.Module):
    """The residual network that a variant describes.

    Its state holds `nnx.Param` and `nnx.BatchStat` variables only. It starts in training mode,
    where each call updates the running averages of batch normalisation. After `eval()` its logits
    depend on the images alone.

    Args:
      variant: what to build.
      num_classes: number of logits.
      rngs: the source of the initial weights. The network does not keep it.

    Attributes:
      variant: as given. After `fold_priors` it has prior="table", so that it always rebuilds a
        network with the same state.
      num_classes: as given.

    Raises:
      ValueError: num_classes is less than 1.
      TypeError: num_classes is not an int, or rngs are not `nnx.Rngs`.

    Source: Table 2 of the paper.
    """

    def __init__(self, variant: Variant, num_classes: int = 1000, *, rngs: nnx.Rngs) -> None:
        check_rngs(rngs)
        self.variant = variant
        self.stem = nnx.List([Normalized(variant, plan, rngs) for plan in plan_stem(variant)])
        stages: list[list[Block]] = [[] for _ in variant.depths]
        for plan in plan_blocks(variant):
            stages[plan.stage].append(Block(variant, plan, rngs))
        self.stages = nnx.List([nnx.List(blocks) for blocks in stages])
        self.reset_head(num_classes, rngs=rngs)

    def reset_head(self, num_classes: int, *, rngs: nnx.Rngs | None = None) -> None:
        """Replaces the head by a fresh one, for other classes.

        Args:
          num_classes: number of logits.
          rngs: the source of its initial weights, Rngs(0) by default.

        Raises:
          ValueError: num_classes is less than 1.
          TypeError: num_classes is not an int.
        """
        check_positive("num_classes", num_classes)
        self.num_classes = num_classes
        self.head = ChannelTransformation(
            self.num_features,
            num_classes,
            use_bias=True,
            dtype=jnp.dtype("float32"),
            rngs=rngs or nnx.Rngs(0),
        )

    @property
    def num_features(self) -> int:
        """Channels of the last feature map, which the head takes."""
        return self.variant.channels[-1]

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Name, channels and stride of each map of `features`, from the finest to the coarsest."""
        return feature_info(self.variant)

    def __call__(self, images: jax.Array, branch_scales: jax.Array | None = None) -> jax.Array:
        """Computes logits.

        Args:
          images: (B, H, W, in_channels) floating point, normalised. `load_classifier(path)` knows
            how: `classifier.preprocess(files)`.
          branch_scales: see `features`.

        Returns:
          (B, num_classes) float32.

        Raises:
          ValueError: images have another shape.
          TypeError: images are integers.
        """
        last = self.features(images, branch_scales)[f"res{len(self.stages) + 1}"]
        return self.head(jnp.mean(last, (1, 2), dtype=jnp.float32))

    def features(
        self, images: jax.Array, branch_scales: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Computes the feature maps for dense tasks.

        Args:
          images: (B, H, W, in_channels) floating point, normalised.
          branch_scales: (blocks, B), what multiplies the branch of each block for each image; see
            `lrnet_jax.training.drop_path`. None for no factors.

        Returns:
          Maps (B, Ho, Wo, C) in the variant's dtype. "res1" is the stem before its pool; "res2",
          "res3" and so on are the stages. `feature_info` has their strides and channels.

        Raises:
          ValueError: images have another shape.
          TypeError: images are integers.
        """
        check_images(images, self.variant.in_channels)
        x = images.astype(self.variant.dtype)
        remat = self.variant.remat
        stem = functools.partial(_stem, self.variant.stem_pool)
        features = {}
        # Scopes name the operations of a compiled program, for profiles and for step_model.
        with jax.named_scope("stem"):
            features["res1"], x = (stem if remat == "none" else recomputed(stem))(self.stem, x)
        scales = itertools.repeat(None) if branch_scales is None else iter(branch_scales)
        calls = first_recomputed(Block.__call__, self.variant.recomputed_blocks)
        for stage, blocks in enumerate(self.stages):
            with jax.named_scope(f"res{stage + 2}"):
                for block in blocks:
                    x = next(calls)(block, x, next(scales))
            features[f"res{stage + 2}"] = x
        return features


def _stem(pool: bool, layers: nnx.List[Normalized], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The stem before and after its pool."""
    first, last = layers[0], layers[-1]
    if isinstance(last.layer, LocalRelation) and is_input(first.layer):
        product = last.product(relu=True) if last.is_one_pass(x) else None
        related = relate_input(first.layer, first.norm, last.layer, x, product)
        x = last.normalized(keep(related), relu=True) if product is None else related
    else:
        for layer in layers:
            x = layer(x, relu=True)
    return x, max_pool_3x3(x) if pool else x


class Block(nnx.Module):
    """relu(branch(x) + shortcut(x)), followed by a non-local block in variants that have them."""

    def __init__(self, variant: Variant, plan: BlockPlan, rngs: nnx.Rngs) -> None:
        *inner, last = plan.branch
        layers = [Normalized(variant, layer, rngs) for layer in inner]
        layers.append(Normalized(variant, last, rngs, zero_gamma=variant.zero_gamma))
        self.branch = nnx.List(layers)
        multiple = inner_multiple(variant)
        self.multiples = (
            *(Multiples(multiple if index else 1, multiple) for index, _ in enumerate(inner)),
            Multiples(multiple, 1),
        )
        self.shortcut = None if plan.shortcut is None else Normalized(variant, plan.shortcut, rngs)
        self.non_local = (
            NonLocalBlock(
                last.out_features,
                pool=variant.full_image_pool[plan.stage],
                norm=make_batch_norm(variant, last.out_features, zero_gamma=True),
                dtype=jnp.dtype(variant.dtype),
                rngs=rngs,
            )
            if variant.non_local_blocks
            else None
        )

    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """(B, H, W, C) -> (B, Ho, Wo, C of the stage); `scale` (B,) multiplies the branch."""
        y: jax.Array | Maps = x
        for (layer, following), multiples in zip(
            itertools.pairwise(self.branch), self.multiples[:-1], strict=True
        ):
            y = layer.before(following.layer, multiples, y)
        y = self._residual_sum(x, y, scale)
        return y if self.non_local is None else self.non_local(y)

    def _residual_sum(
        self, x: jax.Array, y: jax.Array | Maps, scale: jax.Array | None
    ) -> jax.Array:
        """The block's ReLU of x's shortcut and the last layer of the branch, of y."""
        shortcut = (lambda x: x) if self.shortcut is None else self.shortcut
        last, multiples = self.branch[-1], self.multiples[-1]
        if scale is None and last.is_one_pass(y, multiples):
            return last.layer(y, product=last.product(relu=True, residual=shortcut(x)))
        y = last.before(None, multiples, y)
        assert not isinstance(y, Maps)
        if scale is not None:
            y = y * scale.astype(y.dtype)[:, None, None, None]
        return relu(y + shortcut(x))


def fold_priors(model: Network) -> Network:
    """A copy for inference, in which a table of values replaces every prior network.

    The logits stay the same. The copy's variant has prior="table" (the paper's G* has the same
    form), so that variant and state of a folded network rebuild it as those of any other network
    do. A network without prior networks is copied as it is.

    Raises:
      ValueError: the scope is "full" and the variant has no image_size.
    """
    folded = nnx.clone(model)
    if model.variant.prior != "network":
        return folded
    for _, module in nnx.iter_modules(folded):
        if isinstance(module, Relation):
            module.fold_prior()
    folded.variant = dataclasses.replace(model.variant, prior="table")
    return folded
