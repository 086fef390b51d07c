"""The networks: stem, stages of residual blocks and head, built from the plan of a variant."""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lrnet_jax.checks import check_images, check_positive, check_rngs
from lrnet_jax.layers.activation import relu
from lrnet_jax.layers.batch_norm import BatchNorm
from lrnet_jax.layers.channel_transformation import (
    NO_PADDING,
    ChannelTransformation,
    Multiples,
    fan_in_normal,
)
from lrnet_jax.layers.full_image import FullImageRelation
from lrnet_jax.layers.input_transformation import is_input, relate_input
from lrnet_jax.layers.kept import first_recomputed, keep, recomputed
from lrnet_jax.layers.local_relation import LocalRelation
from lrnet_jax.layers.non_local import NonLocal, NonLocalBlock, inner_features
from lrnet_jax.layers.normalized_maps import is_joint, normalized_maps
from lrnet_jax.layers.pooling import max_pool_3x3
from lrnet_jax.layers.relation import Relation, RelationOptions
from lrnet_jax.plan import (
    BlockPlan,
    FeatureInfo,
    LayerPlan,
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


def _stem(pool: bool, layers: nnx.List["Normalized"], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The stem before and after its pool."""
    first, last = layers[0], layers[-1]
    if isinstance(last.layer, LocalRelation) and is_input(first.layer):
        related = relate_input(first.layer, first.norm, last.layer, x)
        x = last.normalized(keep(related), relu=True)
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
                norm=_batch_norm(variant, last.out_features, zero_gamma=True),
                dtype=jnp.dtype(variant.dtype),
                rngs=rngs,
            )
            if variant.non_local_blocks
            else None
        )

    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """(B, H, W, C) -> (B, Ho, Wo, C of the stage); `scale` (B,) multiplies the branch."""
        y: jax.Array | Maps = x
        followers = [*(layer.layer for layer in self.branch[1:]), None]
        for layer, next_one, multiples in zip(self.branch, followers, self.multiples, strict=True):
            y = layer.before(next_one, multiples, y)
        assert not isinstance(y, Maps)
        if scale is not None:
            y = y * scale.astype(y.dtype)[:, None, None, None]
        y = relu(y + (x if self.shortcut is None else self.shortcut(x)))
        return y if self.non_local is None else self.non_local(y)


class Normalized(nnx.Module):
    """A layer and its batch normalisation."""

    def __init__(
        self, variant: Variant, plan: LayerPlan, rngs: nnx.Rngs, *, zero_gamma: bool = False
    ) -> None:
        self.layer = _make_layer(variant, plan, rngs)
        self.norm = _batch_norm(variant, plan.out_features, zero_gamma=zero_gamma)

    def __call__(
        self, x: jax.Array, *, relu: bool = False, multiples: Multiples = NO_PADDING
    ) -> jax.Array:
        """(B, H, W, C) -> (B, Ho, Wo, C of the layer), through a ReLU if one follows.

        `multiples` fill both up by zeros; convolutions and the like know none.
        """
        return self.normalized(keep(self.applied(x, multiples)), relu=relu, multiples=multiples)

    def applied(self, x: jax.Array | Maps, multiples: Multiples = NO_PADDING) -> jax.Array:
        """What the layer makes of its input, or a local relation of the maps of its input."""
        options = {} if multiples == NO_PADDING else {"multiples": multiples}
        if isinstance(x, Maps):
            assert isinstance(self.layer, LocalRelation)
            return self.layer.of_maps(x, **options)
        return self.layer(x, **options)

    def normalized(
        self, y: jax.Array, *, relu: bool, multiples: Multiples = NO_PADDING
    ) -> jax.Array:
        """What follows the layer."""
        with jax.named_scope("batch_norm"):
            return self.norm(y, relu=relu, multiple=multiples.output)

    def before(
        self, following: object, multiples: Multiples, x: jax.Array | Maps
    ) -> jax.Array | Maps:
        """As `__call__`, with a ReLU or the maps of a local relation for the layer that follows."""
        y = self.applied(x, multiples)
        # The last map is the widest of a block, and a product with what is kept makes it again.
        y = y if following is None and isinstance(self.layer, ChannelTransformation) else keep(y)
        if is_joint(following, self.norm, y):
            with jax.named_scope("batch_norm"):
                return normalized_maps(self.norm, following, y, multiples.output)
        y = self.normalized(y, relu=following is not None, multiples=multiples)
        return y if following is None else keep(y)


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


def _make_layer(
    variant: Variant, plan: LayerPlan, rngs: nnx.Rngs
) -> Callable[[jax.Array], jax.Array]:
    dtype = jnp.dtype(variant.dtype)
    features, strides = (plan.in_features, plan.out_features), plan.strides
    match plan.kind:
        case "channel_transformation":
            return ChannelTransformation(*features, strides=strides, dtype=dtype, rngs=rngs)
        case "convolution" | "depthwise":
            return _convolution(plan, dtype, rngs)
        case "local_relation":
            return LocalRelation(
                *features,
                plan.kernel_size,
                strides,
                implementation=variant.implementation,
                rngs=rngs,
                **_relation_options(variant, plan),
            )
        case "full_image":
            return FullImageRelation(
                *features,
                strides,
                pool=plan.pool,
                output_size=plan.output_size,
                rngs=rngs,
                **_relation_options(variant, plan),
            )
        case "non_local":
            inner = inner_features(plan.in_features)
            return NonLocal(
                *features, inner, strides=strides, pool=plan.pool, dtype=dtype, rngs=rngs
            )


def _convolution(plan: LayerPlan, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        plan.in_features,
        plan.out_features,
        (plan.kernel_size, plan.kernel_size),
        strides=plan.strides,
        # With "SAME" an output is not centred on pixel i * strides of an even image.
        padding=plan.kernel_size // 2,
        feature_group_count=plan.in_features if plan.kind == "depthwise" else 1,
        use_bias=False,
        dtype=dtype,
        kernel_init=fan_in_normal,
        rngs=rngs,
    )


def _relation_options(variant: Variant, plan: LayerPlan) -> RelationOptions:
    return RelationOptions(
        channels_per_group=plan.channels_per_group,
        query_key_dim=plan.query_key_dim,
        similarity=variant.similarity,
        scale=variant.scale,
        normalization=variant.normalization,
        prior=variant.prior,
        prior_hidden=variant.prior_hidden,
        prior_stddev=variant.prior_stddev,
        dtype=jnp.dtype(variant.dtype),
    )


def _batch_norm(variant: Variant, features: int, *, zero_gamma: bool) -> BatchNorm:
    return BatchNorm(
        features,
        scale_init=0.0 if zero_gamma else 1.0,
        group_images=variant.batch_norm_images,
        axis_name=variant.batch_norm_axis,
    )
