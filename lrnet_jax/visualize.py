"""What local relation layers have learnt and what they see: priors, query and key maps.

Layers are named by the path of their module, as in `complexity`: "stages.0.1.branch.1.layer".
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lrnet_jax.layers.local_relation import LocalRelation
from lrnet_jax.networks import Network


class QueryKey(NamedTuple):
    """The maps of one layer, float32.

    Attributes:
      query: (B, Ho, Wo, G, D).
      key: (B, H, W, G, D).
    """

    query: np.ndarray
    key: np.ndarray


def local_relations(model: Network) -> dict[str, LocalRelation]:
    """The local relation layers of a network, from the images on, the stem's first."""
    found = {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, LocalRelation)
    }
    return dict(sorted(found.items(), key=lambda item: _depth(item[0])))


def stage_layers(model: Network) -> dict[str, str]:
    """The last local relation of each stage: {"res2": its name, ...}, "res1" for the stem."""
    last = {}
    for name in local_relations(model):
        head, number, *_ = name.split(".")
        last["res1" if head == "stem" else f"res{int(number) + 2}"] = name
    return last


def prior_weights(layer: LocalRelation) -> np.ndarray | None:
    """Softmax of a layer's geometric prior over its window: (G, k, k), or None without a prior.

    These are the layer's weights where query and key say nothing: equal similarities at every tap.

    Source: figure 4 of the paper.
    """
    logits = layer.geometric_prior()
    if logits is None:
        return None
    return np.asarray(jax.nn.softmax(logits, axis=(1, 2)))


def query_key_maps(model: Network, images: jax.Array) -> dict[str, QueryKey]:
    """Queries and keys of every local relation layer on some images.

    Args:
      model: in any mode; it is evaluated with running statistics and not changed.
      images: (B, H, W, 3), normalised.

    Source: figure 5 of the paper.
    """
    watched = nnx.clone(model)
    watched.eval()
    # Rematerialised blocks are traced apart: what is seen inside could not leave them.
    watched.variant = dataclasses.replace(model.variant, remat=False)
    seen: dict[str, tuple[jax.Array, jax.Array]] = {}
    for name, layer in local_relations(watched).items():
        *path, attribute = name.split(".")
        parent: Any = watched
        for part in path:
            parent = parent[int(part)] if part.isdigit() else getattr(parent, part)
        setattr(parent, attribute, _Watched(layer, name, seen))

    def run(images: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        watched(images)
        return dict(seen)

    maps = jax.jit(run)(images)
    return {
        name: QueryKey(*(np.asarray(map_.astype(jnp.float32)) for map_ in maps[name]))
        for name in local_relations(model)
    }


class _Watched(nnx.Module):
    """A layer that notes its queries and keys; they are computed twice."""

    def __init__(
        self, layer: LocalRelation, name: str, seen: dict[str, tuple[jax.Array, jax.Array]]
    ) -> None:
        self.layer = layer
        self.note = lambda maps: seen.__setitem__(name, maps)

    def __call__(self, x: jax.Array) -> jax.Array:
        self.note(
            self.layer.query_and_key(x if self.layer.dtype is None else x.astype(self.layer.dtype))
        )
        return self.layer(x)


def _depth(name: str) -> tuple[int, tuple[int, ...]]:
    numbers = tuple(int(part) for part in name.split(".") if part.isdigit())
    return (0 if name.startswith("stem") else 1, numbers)
