"""Local Relation Networks in Flax NNX."""

from lrnet_jax.layers.local_relation import LocalRelation
from lrnet_jax.model_zoo import create_model, get_variant, list_models
from lrnet_jax.networks import fold_priors
from lrnet_jax.variant import Variant

__all__ = [
    "LocalRelation",
    "Variant",
    "create_model",
    "fold_priors",
    "get_variant",
    "list_models",
]
