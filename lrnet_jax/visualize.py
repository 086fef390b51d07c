"""What local relation layers have learnt and what they see: priors, query and key maps.

A layer's name is the path of its module, as in `complexity`, such as "stages.0.1.branch.1.layer".
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lrnet_jax.layers.channel_transformation import NO_PADDING, Multiples
from lrnet_jax.layers.local_relation import LocalRelation
from lrnet_jax.networks import Network
from lrnet_jax.normalized import Normalized


class QueryKey(NamedTuple):
    """The maps of one layer, float32.

    Attributes:
      query: (B, Ho, Wo, G, D).
      key: (B, H, W, G, D).
    """

    query: np.ndarray
    key: np.ndarray


def local_relations(model: Network) -> dict[str, LocalRelation]:
    """The local relation layers of a network by name, in the order in which an image meets them."""
    found = [
        (path, module)
        for path, module in nnx.iter_modules(model)
        if isinstance(module, LocalRelation)
    ]
    found.sort(key=lambda item: (item[0][0] != "stem", item[0]))
    return {".".join(map(str, path)): module for path, module in found}


def stage_layers(model: Network) -> dict[str, str]:
    """The name of the last local relation of each stage, {"res2": ..., ...}; "res1" is the stem."""
    last = {}
    for name in local_relations(model):
        head, number, *_ = name.split(".")
        last["res1" if head == "stem" else f"res{int(number) + 2}"] = name
    return last


def prior_weights(layer: LocalRelation) -> np.ndarray | None:
    """Softmax of a layer's geometric prior over its window: (G, k, k), or None without a prior.

    These are the weights of the layer where the similarities of all taps are equal.

    Source: figure 4 of the paper.
    """
    logits = layer.geometric_prior()
    if logits is None:
        return None
    return np.asarray(jax.nn.softmax(logits, axis=(1, 2)))


def query_key_maps(model: Network, images: jax.Array) -> dict[str, QueryKey]:
    """Queries and keys of every local relation layer on some images.

    Args:
      model: in any mode. It is evaluated with running statistics and not changed.
      images: (B, H, W, in_channels), normalised.

    Returns:
      The maps by name of the layer, in the order of `local_relations`.

    Raises:
      ValueError: images have another shape.

    Source: figure 5 of the paper.
    """
    watched = nnx.clone(model)
    watched.eval()
    # A rematerialised block is traced apart, and what is recorded inside could not leave it.
    watched.variant = dataclasses.replace(model.variant, remat="none")
    seen: dict[str, tuple[jax.Array, jax.Array]] = {}
    for path, module in list(nnx.iter_modules(watched)):
        if isinstance(module, Normalized) and isinstance(module.layer, LocalRelation):
            name = ".".join(map(str, (*path, "layer")))
            module.layer = _Watched(module.layer, name, seen)

    def run(images: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        watched(images)
        return dict(seen)

    maps = jax.jit(run)(images)
    return {
        name: QueryKey(*(np.asarray(map_.astype(jnp.float32)) for map_ in maps[name]))
        for name in local_relations(model)
    }


class _Watched(nnx.Module):
    """A layer that records its queries and keys. It computes them twice."""

    def __init__(
        self, layer: LocalRelation, name: str, seen: dict[str, tuple[jax.Array, jax.Array]]
    ) -> None:
        self.layer = layer
        self.record = lambda maps: seen.__setitem__(name, maps)

    def __call__(self, x: jax.Array, *, multiples: Multiples = NO_PADDING) -> jax.Array:
        self.record(self.layer.query_and_key(x, multiples.input))
        return self.layer(x, multiples=multiples)
