"""Parameters that training leaves as they are: named by paths, and kept out of trees.

    trained, frozen = split_frozen(params, paths)      two nested dicts without each other's leaves
    params = join(trained, frozen)

A path is that of a leaf in the nested dict, such as "stages/0/1/branch/0/layer/kernel".
"""

import dataclasses
from collections.abc import Set
from typing import NamedTuple

import optax
from flax import nnx

from lrnet_jax.functional import Functional, Tree
from lrnet_jax.layers.batch_norm import BatchNorm
from lrnet_jax.networks import Network
from lrnet_jax.training.checkpoints import flatten

Paths = frozenset[str]


class Frozen(NamedTuple):
    """What training leaves as it is.

    Attributes:
      params: paths of parameters.
      statistics: paths of running statistics.
    """

    params: Paths = frozenset()
    statistics: Paths = frozenset()


NOTHING = Frozen()


def freeze(params: Tree, batch_stats: Tree, paths: Set[str]) -> Frozen:
    """Freezes parameters, and the statistics of each layer that has no other parameters.

    A batch normalisation that no longer learns must not drift either.
    """
    owners: dict[str, list[str]] = {}
    for path in flatten(params):
        owners.setdefault(path.rpartition("/")[0], []).append(path)
    statistics = frozenset(
        path
        for path in flatten(batch_stats)
        if all(other in paths for other in owners[path.rpartition("/")[0]])
    )
    return Frozen(frozenset(paths), statistics)


def with_frozen_statistics(
    functional: Functional, model: Network, statistics: Set[str]
) -> Functional:
    """The network's functions, where frozen statistics also normalise in training."""
    if not statistics:
        return functional
    model.train()
    for path, module in nnx.iter_modules(model):
        name = "/".join(map(str, path))
        if isinstance(module, BatchNorm) and f"{name}/mean" in statistics:
            module.eval()
    train = nnx.graphdef(model)
    model.train()
    return dataclasses.replace(functional, train=train)


def without_frozen(
    optimizer: optax.GradientTransformation, frozen: Set[str]
) -> optax.GradientTransformation:
    """An optimiser of the parameters that are not frozen; it keeps no state for the others.

    Its `init` and `update` take all parameters, and gradients of those that are trained.
    """
    if not frozen:
        return optimizer

    def init(params: Tree) -> optax.OptState:
        return optimizer.init(split_frozen(params, frozen)[0])

    def update(
        updates: Tree, state: optax.OptState, params: Tree = None
    ) -> tuple[Tree, optax.OptState]:
        return optimizer.update(updates, state, split_frozen(params, frozen)[0])

    return optax.GradientTransformation(init, update)


def split_frozen(tree: Tree, frozen: Set[str]) -> tuple[Tree, Tree]:
    """A nested dict in two: the leaves that are not frozen, and those that are.

    Neither has empty dicts. With nothing frozen, the first is the tree itself.
    """
    if not frozen:
        return tree, {}
    return _select(tree, frozen, wanted=False), _select(tree, frozen, wanted=True)


def join(one: Tree, other: Tree) -> Tree:
    """The nested dict with the leaves of both, which have none in common."""
    if not other:
        return one
    joined = dict(one)
    for key, value in other.items():
        joined[key] = join(joined[key], value) if key in joined else value
    return joined


def keep_frozen(new: Tree, old: Tree, frozen: Set[str]) -> Tree:
    """`new` with the frozen leaves of `old`; `new` may lack them."""
    return join(split_frozen(new, frozen)[0], split_frozen(old, frozen)[1])


def _select(tree: Tree, frozen: Set[str], *, wanted: bool, prefix: str = "") -> Tree:
    chosen = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            inner = _select(value, frozen, wanted=wanted, prefix=f"{path}/")
            if inner:
                chosen[key] = inner
        elif (path in frozen) == wanted:
            chosen[key] = value
    return chosen
