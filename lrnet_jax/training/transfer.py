"""From the checkpoint of one run into the first state of another: weights, optimiser, position."""

import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lrnet_jax.functional import Tree
from lrnet_jax.training import checkpoints
from lrnet_jax.training.checkpoints import CheckpointError, Metadata, flatten

HEAD = "params/head/"


class Weights(NamedTuple):
    """The network of a checkpoint, as it is stored.

    Attributes:
      folder: the step directory or export.
      metadata: its record.
      ema: whether the weights are averages.
      arrays: {"params": ..., "batch_stats": ...} on the first local device.
    """

    folder: pathlib.Path
    metadata: Metadata
    ema: bool
    arrays: Tree


class Moved(NamedTuple):
    """A network with the weights of a checkpoint.

    Attributes:
      params: those of the checkpoint, with the network's own head where it was left.
      batch_stats: those of the checkpoint.
      taken: paths of the arrays that were taken.
      left: paths of those that the checkpoint has and the network does not use: a head, or nothing.
    """

    params: Tree
    batch_stats: Tree
    taken: tuple[str, ...]
    left: tuple[str, ...]


def read_weights(path: str | pathlib.Path, *, ema: bool | None = None) -> Weights:
    """Reads the network of a checkpoint without building it.

    Args:
      path: a workdir (its newest good checkpoint), one of its step directories, or an export.
      ema: True for the averaged weights, False for those of the last step, None for the averages if
        the run kept them.

    Raises:
      CheckpointError: there is no checkpoint, it is damaged, or it has no averages.
    """
    folder, metadata, _ = checkpoints.find(path)
    ema = checkpoints.has_ema(folder) if ema is None else ema
    item = checkpoints.EMA if ema else checkpoints.MODEL
    shapes = {
        path: jax.ShapeDtypeStruct(*stored)
        for path, stored in checkpoints.stored_shapes(folder, item).items()
    }
    return Weights(folder, metadata, ema, checkpoints.read_model(folder, _nested(shapes), item))


def move_weights(weights: Weights, params: Tree, batch_stats: Tree, *, head: bool) -> Moved:
    """Puts the weights and statistics of a checkpoint into a network.

    Args:
      weights: of the checkpoint.
      params: of the network.
      batch_stats: of the network.
      head: whether the head is taken. Otherwise the network keeps its own.

    Raises:
      CheckpointError: the checkpoint is of another network. The message has the first array that
        does not fit.
    """
    own = flatten({"params": params, "batch_stats": batch_stats})
    stored = flatten(weights.arrays)
    left = () if head else tuple(path for path in stored if path.startswith(HEAD))
    wanted = [path for path in own if head or not path.startswith(HEAD)]
    for path in sorted({*wanted, *stored} - {*left}):
        if path not in stored or path not in own or _kind(stored[path]) != _kind(own[path]):
            if path not in own:
                reason = f"it has {path}, which this one has not"
            elif path not in stored:
                reason = f"it lacks {path}, which this one has"
            else:
                reason = f"its {path} is {_describe(stored[path])}, and {_describe(own[path])} here"
            raise CheckpointError(f"checkpoint {weights.folder} is of another network: {reason}")
    arrays = _nested({**own, **{path: stored[path] for path in wanted}})
    return Moved(arrays["params"], arrays.get("batch_stats", {}), tuple(wanted), left)


def move_optimizer(old: optax.OptState, new: optax.OptState) -> optax.OptState:
    """The state of one optimiser in the form of another that keeps the same numbers.

    Both may be wrapped in other transformations: clipping, factors, frozen parameters. What `new`
    has no place for is dropped.

    Raises:
      ValueError: `new` needs a number that `old` has not. The message names it.
    """
    kept: dict[str, list[Any]] = {}
    for path, leaf in flatten(old).items():
        kept.setdefault(_own_name(path), []).append(leaf)
    leaves = []
    for path, leaf in flatten(new).items():
        name = _own_name(path)
        found = kept.get(name)
        if not found or _kind(found[0]) != _kind(leaf):
            raise ValueError(f"it has no {name} of {_describe(leaf)}")
        leaves.append(found.pop(0))
    return jax.tree.unflatten(jax.tree.structure(new), leaves)


def set_schedule(opt_state: optax.OptState, step: int) -> optax.OptState:
    """The state of an optimiser whose schedule of the learning rate is at a step."""
    return jax.tree.map(
        lambda node: node._replace(count=jnp.int32(step)) if _is_schedule(node) else node,
        opt_state,
        is_leaf=_is_schedule,
    )


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)


def _own_name(path: str) -> str:
    """A path without the places in chains that it begins with: "1/0/mu/stem" -> "mu/stem"."""
    return re.sub(r"^(\d+/)*", "", path)


def _kind(leaf: Any) -> tuple[tuple[int, ...], Any]:
    return tuple(leaf.shape), jnp.dtype(leaf.dtype)


def _describe(leaf: Any) -> str:
    return f"{jnp.dtype(leaf.dtype)}{list(leaf.shape)}"


def _nested(flat: dict[str, Any]) -> Tree:
    """{"a/b": 1} -> {"a": {"b": 1}}."""
    tree: Tree = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree
