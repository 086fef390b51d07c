"""A network as pure functions of its arrays, which are plain nested dicts.

Flax modules hold their arrays, but a training step takes them as arguments. `split` takes the
arrays out of a network, and `merge` puts them back.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx

from lrnet_jax.networks import Network

Tree = Any  # a nested dict of arrays; a recursive type would have to be narrowed at every key
Variables = tuple[Tree, Tree]  # params, batch_stats


@dataclasses.dataclass(frozen=True)
class Functional:
    """A network as functions of its arrays.

    Attributes:
      train: graph definition with BatchNorm in training mode.
      evaluate: graph definition with BatchNorm in evaluation mode.
    """

    train: nnx.GraphDef[Network]
    evaluate: nnx.GraphDef[Network]

    def apply_train(
        self,
        params: Tree,
        batch_stats: Tree,
        images: jax.Array,
        branch_scales: jax.Array | None = None,
    ) -> tuple[jax.Array, Tree]:
        """Computes logits (B, num_classes) float32 with the statistics of the batch.

        Args:
          params: as `split` returns them.
          batch_stats: as `split` returns them.
          images: (B, H, W, in_channels), normalised.
          branch_scales: (blocks, B), see `Network.features`.

        Returns:
          The logits, and the updated running statistics.
        """
        model = merge(self.train, params, batch_stats)
        logits = model(images, branch_scales)
        return logits, to_dict(nnx.state(model, nnx.BatchStat))

    def apply(self, params: Tree, batch_stats: Tree, images: jax.Array) -> jax.Array:
        """Computes logits (B, num_classes) float32 with running statistics."""
        return merge(self.evaluate, params, batch_stats)(images)


def split(model: Network) -> tuple[Functional, Tree, Tree]:
    """A network as (functions, params, batch_stats); the arrays are plain nested dicts."""
    model.eval()
    evaluate = nnx.graphdef(model)
    model.train()
    train = nnx.graphdef(model)
    params, batch_stats = nnx.state(model, nnx.Param, nnx.BatchStat)
    return Functional(train, evaluate), to_dict(params), to_dict(batch_stats)


def to_dict(state: nnx.State) -> Tree:
    """An NNX state as plain nested dicts with string keys, the form that checkpoints store."""

    def with_string_keys(tree: Tree) -> Tree:
        if isinstance(tree, dict):
            return {str(key): with_string_keys(value) for key, value in tree.items()}
        return tree

    return with_string_keys(nnx.to_pure_dict(state))


def merge(graphdef: nnx.GraphDef[Network], *trees: Tree) -> Network:
    """The network of a graph definition with the arrays of plain dicts (see `to_dict`)."""
    return nnx.merge(graphdef, *(nnx.restore_int_paths(tree) for tree in trees))
