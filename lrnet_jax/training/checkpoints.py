"""Checkpoints on disk, through Orbax.

A step directory holds three items or four, each readable on its own:

    model      {"params": ..., "batch_stats": ...}: plain nested dicts of arrays, all that
               inference needs, and nothing that needs Flax to be read
    ema        the averages of the same arrays, where the run kept them: evaluate with these
    training   optimiser state, step, random key: what a bit-exact resume needs besides
    metadata   JSON: how to build the network again, and whatever the caller adds

Restoring always goes into a tree of shapes, dtypes and shardings that the network at hand
prescribes. A bare restore fails on another number of devices, and Orbax casts dtypes silently.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from lrnet_jax.training.steps import TrainState, Tree

FOLDER = "checkpoints"  # below a workdir
MODEL, EMA = "model", "ema"  # items with the arrays of a network


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another network; the message says what to do."""


def open_manager(workdir: pathlib.Path, *, keep: int) -> ocp.CheckpointManager:
    """The checkpoints of a workdir, saved in the background, the newest `keep` kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    return ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)


def save(manager: ocp.CheckpointManager, state: TrainState, metadata: dict[str, Any]) -> None:
    """Starts saving a state; returns once the arrays are copied off the devices."""
    step = int(jax.device_get(state.step))
    if manager.latest_step() == step:
        return
    averages = {} if state.ema is None else {EMA: ocp.args.StandardSave(state.ema)}
    manager.save(
        step,
        args=ocp.args.Composite(
            **averages,
            model=ocp.args.StandardSave(_model_item(state)),
            training=ocp.args.StandardSave(_training_item(state)),
            metadata=ocp.args.JsonSave({**metadata, "step": step}),
        ),
    )


def restore(manager: ocp.CheckpointManager, like: TrainState) -> TrainState | None:
    """The newest state of a workdir, or None if there is none yet.

    Args:
      manager: from `open_manager`.
      like: a state of the shapes, dtypes and shardings to restore into.

    Raises:
      CheckpointError: it cannot be read, or belongs to another network.
    """
    step = manager.latest_step()
    if step is None:
        return None
    folder = pathlib.Path(manager.directory) / str(step)
    model = _restore_item(folder, "model", _abstract(_model_item(like)))
    training = _restore_item(folder, "training", _abstract(_training_item(like)))
    ema = None if like.ema is None else read_model(folder, like.ema, EMA)
    return TrainState(
        step=training["step"],
        params=model["params"],
        batch_stats=model["batch_stats"],
        opt_state=training["opt_state"],
        rng=training["rng"],
        ema=ema,
    )


def find_step(path: str | pathlib.Path) -> pathlib.Path:
    """The step directory that a path means: itself, or the newest of a workdir.

    Raises:
      CheckpointError: there is none.
    """
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint: {path} is not a directory")
    if (path / "model").is_dir():
        return path
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = [int(child.name) for child in folder.iterdir() if child.name.isdecimal()]
    if not steps:
        raise CheckpointError(
            f"no checkpoint in {path}: it holds neither a step directory nor {FOLDER}/; "
            "give the workdir of a run, or one of its checkpoints"
        )
    return folder / str(max(steps))


def read_metadata(folder: pathlib.Path) -> dict[str, Any]:
    """The metadata record of a step directory.

    Raises:
      CheckpointError: missing, not JSON, or not a record of ours.
    """
    path = folder / "metadata" / "metadata"
    try:
        metadata = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {folder} has no readable metadata: {_first_line(error)}"
        ) from error
    if not isinstance(metadata, dict) or "variant" not in metadata:
        raise CheckpointError(f"checkpoint {folder} was not written by lrnet_jax: no 'variant'")
    return metadata


def has_ema(folder: pathlib.Path) -> bool:
    """Whether a step directory holds averaged weights."""
    return (folder / EMA).is_dir()


def read_model(folder: pathlib.Path, like: Tree, item: str = MODEL) -> Tree:
    """The arrays of a step directory's network.

    Args:
      folder: a step directory.
      like: {"params": ..., "batch_stats": ...}, arrays or shapes. Leaves that the checkpoint
        stores in another shape or dtype are an error; see `stored_shapes` to ask first.
      item: "model" for the weights as trained, "ema" for their averages.

    Returns:
      The tree with arrays on the first local device, or where `like` has its shardings.

    Raises:
      CheckpointError: unreadable, without averages, or of another network.
    """
    if item == EMA and not has_ema(folder):
        raise CheckpointError(
            f"checkpoint {folder} has no averaged weights; its run had train.ema_decay=0"
        )
    return _restore_item(folder, item, _abstract(like))


def stored_shapes(folder: pathlib.Path, item: str = "model") -> dict[str, tuple[Any, Any]]:
    """What an item of a checkpoint holds: path ("params/stem/...") to (shape, dtype)."""
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.metadata(folder / item).item_metadata.tree
    except Exception as error:  # Orbax raises many kinds; all mean that it cannot be read
        raise CheckpointError(
            f"checkpoint {folder} cannot be read ({item}): {_first_line(error)}"
        ) from error
    return {
        path: (tuple(leaf.shape), jnp.dtype(leaf.dtype)) for path, leaf in flatten(tree).items()
    }


def flatten(tree: Tree) -> dict[str, Any]:
    """A nested tree as {"a/b/c": leaf}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(getattr(e, "key", getattr(e, "idx", getattr(e, "name", e)))) for e in p): leaf
        for p, leaf in leaves
    }


def _model_item(state: TrainState) -> Tree:
    return {"params": state.params, "batch_stats": state.batch_stats}


def _training_item(state: TrainState) -> Tree:
    return {"opt_state": state.opt_state, "step": state.step, "rng": state.rng}


def _abstract(tree: Tree) -> Tree:
    def leaf(array: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(array, "sharding", None)
        if sharding is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)


def _restore_item(folder: pathlib.Path, item: str, abstract: Tree) -> Tree:
    if item in (MODEL, EMA):
        _check_model(folder, item, abstract)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder / item, abstract)
    except Exception as error:  # Orbax raises many kinds; all mean that it cannot be read
        raise CheckpointError(
            f"checkpoint {folder} cannot be read ({item}): {_first_line(error)}; delete that "
            "directory to go on from the one before it"
        ) from error


def _check_model(folder: pathlib.Path, item: str, abstract: Tree) -> None:
    stored, wanted = stored_shapes(folder, item), flatten(abstract)
    for path in sorted(stored.keys() | wanted.keys()):
        if path not in wanted:
            raise CheckpointError(f"checkpoint {folder} has {path}, which the network has not")
        if path not in stored:
            raise CheckpointError(f"checkpoint {folder} lacks {path}, which the network has")
        want = (tuple(wanted[path].shape), jnp.dtype(wanted[path].dtype))
        if stored[path] != want:
            raise CheckpointError(
                f"checkpoint {folder} has {path} as {stored[path][1]}{list(stored[path][0])}, "
                f"the network as {want[1]}{list(want[0])}"
            )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
