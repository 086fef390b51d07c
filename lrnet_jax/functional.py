"""A network as pure functions of its arrays, which are plain nested dicts.

Flax modules hold their arrays; a training step wants them as arguments. `split` takes them out,
`merge` puts them back.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx

Tree = Any  # a nested dict of arrays


@dataclasses.dataclass(frozen=True)
class Functional:
    """A network as functions of its arrays.

    Attributes:
      train: graph definition with BatchNorm in training mode.
      evaluate: the same with running statistics.
    """

    train: nnx.GraphDef[Any]
    evaluate: nnx.GraphDef[Any]

    def apply_train(
        self, params: Tree, batch_stats: Tree, images: jax.Array
    ) -> tuple[jax.Array, Tree]:
        """Logits with batch statistics, and the updated running statistics."""
        model = merge(self.train, params, batch_stats)
        logits = model(images)
        return logits, to_dict(nnx.state(model, nnx.BatchStat))

    def apply(self, params: Tree, batch_stats: Tree, images: jax.Array) -> jax.Array:
        """Logits with running statistics."""
        return merge(self.evaluate, params, batch_stats)(images)


def split(model: nnx.Module) -> tuple[Functional, Tree, Tree]:
    """A network as (functions, params, batch_stats); the arrays are plain nested dicts."""
    model.eval()
    evaluate = nnx.graphdef(model)
    model.train()
    train = nnx.graphdef(model)
    params, batch_stats = nnx.state(model, nnx.Param, nnx.BatchStat)
    return Functional(train, evaluate), to_dict(params), to_dict(batch_stats)


def to_dict(state: nnx.State) -> Tree:
    """An NNX state as plain nested dicts with string keys, as a checkpoint holds them."""

    def with_string_keys(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {str(key): with_string_keys(value) for key, value in tree.items()}
        return tree

    return with_string_keys(nnx.to_pure_dict(state))


def merge(graphdef: nnx.GraphDef[Any], *trees: Tree) -> Any:
    """The network of a graph definition with the arrays of plain dicts (see `to_dict`)."""
    return nnx.merge(graphdef, *(nnx.restore_int_paths(tree) for tree in trees))
