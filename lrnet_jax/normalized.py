"""A layer of a network's plan and its batch normalisation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lrnet_jax.layers.batch_norm import BatchNorm
from lrnet_jax.layers.channel_transformation import (
    NO_PADDING,
    ChannelTransformation,
    Multiples,
    Product,
    fan_in_normal,
)
from lrnet_jax.layers.full_image import FullImageRelation
from lrnet_jax.layers.kept import keep
from lrnet_jax.layers.local_relation import LocalRelation
from lrnet_jax.layers.non_local import NonLocal, inner_features
from lrnet_jax.layers.normalized_maps import is_joint, normalized_maps
from lrnet_jax.layers.normalized_products import in_one_pass, normalized_product
from lrnet_jax.layers.relation import RelationOptions
from lrnet_jax.plan import LayerPlan
from lrnet_jax.variant import Variant
from pallas_kernels.pallas.stem import Maps


class Normalized(nnx.Module):
    """A layer and its batch normalisation."""

    def __init__(
        self, variant: Variant, plan: LayerPlan, rngs: nnx.Rngs, *, zero_gamma: bool = False
    ) -> None:
        self.layer = _make_layer(variant, plan, rngs)
        self.norm = make_batch_norm(variant, plan.out_features, zero_gamma=zero_gamma)

    def __call__(
        self, x: jax.Array, *, relu: bool = False, multiples: Multiples = NO_PADDING
    ) -> jax.Array:
        """(B, H, W, C) -> (B, Ho, Wo, C of the layer), through a ReLU if one follows.

        `multiples` fill both up by zeros; convolutions and the like know none.
        """
        if self.is_one_pass(x, multiples):
            return self.layer(x, product=self.product(relu=relu))
        return self.normalized(keep(self.applied(x, multiples)), relu=relu, multiples=multiples)

    def is_one_pass(self, x: jax.Array | Maps, multiples: Multiples = NO_PADDING) -> bool:
        """Whether `product` is for the layer of x: in evaluation, where C++ runs on a CPU here."""
        layer, norm = self.layer, self.norm
        # A layer whose weights hold its normalisation has another norm.
        if not isinstance(norm, BatchNorm) or not norm.use_running_average:
            return False
        if not isinstance(layer, ChannelTransformation | LocalRelation) or multiples != NO_PADDING:
            return False
        if isinstance(x, Maps) or not {layer.dtype, norm.dtype} <= {None, jnp.dtype("float32")}:
            return False
        last = layer.output if isinstance(layer, LocalRelation) else layer
        return in_one_pass(x, last.kernel[...], norm.scale[...])

    def product(self, *, relu: bool, residual: jax.Array | None = None) -> Product:
        """For the layer to call in place of its last product: that with what follows it."""
        gain, offset = self.norm.gain_and_offset()
        return lambda x, kernel: normalized_product(relu, x, kernel, gain, offset, residual)

    def applied(self, x: jax.Array | Maps, multiples: Multiples = NO_PADDING) -> jax.Array:
        """What the layer makes of its input, or a local relation of the maps of its input."""
        options: dict[str, Any] = {} if multiples == NO_PADDING else {"multiples": multiples}
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
        if following is not None and self.is_one_pass(x, multiples):
            return keep(self.layer(x, product=self.product(relu=True)))
        y = self.applied(x, multiples)
        # The last map is the widest of a block, and a product with what is kept makes it again.
        y = y if following is None and isinstance(self.layer, ChannelTransformation) else keep(y)
        if is_joint(following, self.norm, y):
            with jax.named_scope("batch_norm"):
                return normalized_maps(self.norm, following, y, multiples.output)
        y = self.normalized(y, relu=following is not None, multiples=multiples)
        return y if following is None else keep(y)


def _make_layer(variant: Variant, plan: LayerPlan, rngs: nnx.Rngs) -> Callable[..., jax.Array]:
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


def make_batch_norm(variant: Variant, features: int, *, zero_gamma: bool) -> BatchNorm:
    """The batch normalisation of a variant, after C features."""
    return BatchNorm(
        features,
        scale_init=0.0 if zero_gamma else 1.0,
        group_images=variant.batch_norm_images,
        axis_name=variant.batch_norm_axis,
    )
