"""Checkpoints on disk: what is in them, and how they are read. `checkpoint_saver.py` writes them.

A step directory holds a seal and three or four Orbax items, each of which can be read alone:

    model      {"params": ..., "batch_stats": ...}, plain nested dicts of arrays: all that
               inference needs, readable without Flax
    ema        the averages of the same arrays, where the run kept them: evaluate with these
    training   optimiser state, step, random key: what a bit-exact resume needs besides
    metadata   JSON: how to build the network again, and whatever the caller adds
    seal.json  checksums of all files (`seal.py`)

Restoring always goes into a tree of shapes, dtypes and shardings that the network at hand
prescribes. A bare restore fails on another number of devices, and Orbax casts dtypes silently.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from lrnet_jax.functional import Tree
from lrnet_jax.training import seal
from lrnet_jax.training.state import TrainState

if TYPE_CHECKING:  # an import of Orbax takes a third of a second: where it is used
    import orbax.checkpoint as ocp

FOLDER = "checkpoints"  # below a workdir
MODEL, EMA = "model", "ema"  # items with the arrays of a network
DAMAGED = ".damaged"  # ends the name of a checkpoint that was set aside

Metadata = dict[str, Any]  # a JSON object; see `read_metadata`


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another network; the message says what to do."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint's files are not those that were saved; an older checkpoint may be good."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `restore` found.

    Attributes:
      state: of the newest good checkpoint.
      metadata: its record.
      damaged: a message for each newer checkpoint that was passed over.
    """

    state: TrainState
    metadata: Metadata
    damaged: tuple[str, ...]


class Found(NamedTuple):
    """What `find` found.

    Attributes:
      folder: the step directory.
      metadata: its record.
      damaged: a message for each newer checkpoint that was passed over.
    """

    folder: pathlib.Path
    metadata: Metadata
    damaged: tuple[str, ...]


def restore(
    workdir: pathlib.Path,
    like: TrainState,
    *,
    check: Callable[[Metadata], None] = lambda metadata: None,
    set_aside: bool = True,
) -> Restored | None:
    """The newest good state of a workdir, or None if it holds no checkpoint yet.

    Newer checkpoints that are damaged or foreign are passed over.

    Args:
      workdir: of the run, of which this process must be the only writer.
      like: a state of the shapes, dtypes and shardings to restore into.
      check: raises DamagedCheckpointError for the metadata of a checkpoint that is not this run's.
      set_aside: whether those passed over are renamed (never deleted), so that the run can write
        its own in their place.

    Raises:
      CheckpointError: there are checkpoints and none is good, or they belong to another network.
    """
    parent = workdir.absolute() / FOLDER
    found, damaged = _newest_good(parent, check)
    if found is None:
        return None
    folder, metadata = found
    state = read_state(folder, like)
    for newer in steps_in(parent):
        if set_aside and newer > metadata["step"]:
            _set_aside(parent / str(newer))
    return Restored(state, metadata, damaged)


def steps_in(folder: pathlib.Path) -> list[int]:
    """Steps of the checkpoints in a folder, rising. They are not checked."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def find(path: str | pathlib.Path) -> Found:
    """The checkpoint that a path means: itself, or the newest good one of a workdir.

    Raises:
      CheckpointError: there is none, or none that is good.
    """
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint: {path} is not a directory")
    if any((path / name).exists() for name in ("model", "metadata", seal.FILE)):
        return Found(path, read_metadata(path), ())
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    found, damaged = _newest_good(folder)
    if found is None:
        raise CheckpointError(
            f"no checkpoint in {path}: it holds neither a step directory nor {FOLDER}/; "
            "give the workdir of a run, or one of its checkpoints"
        )
    return Found(*found, damaged)


def _newest_good(
    folder: pathlib.Path, check: Callable[[Metadata], None] = lambda metadata: None
) -> tuple[tuple[pathlib.Path, Metadata] | None, tuple[str, ...]]:
    """(directory, metadata) or None where there is nothing, and what was passed over."""
    damaged: list[str] = []
    for step in reversed(steps_in(folder)):
        try:
            metadata = read_metadata(folder / str(step))
            check(metadata)
        except DamagedCheckpointError as error:
            damaged.append(str(error))
        else:
            return (folder / str(step), metadata), tuple(damaged)
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {folder} is good, of {len(damaged)}; the newest: "
            f"{damaged[0]}. Bring back a copy, or delete that folder to start from step 0"
        )
    return None, ()


def read_metadata(folder: pathlib.Path) -> Metadata:
    """The metadata record of a step directory, after checking all its files against the seal.

    Raises:
      DamagedCheckpointError: they are not those that were saved, or not saved by lrnet_jax.
    """
    try:
        seal.check_seal(folder)
        metadata = json.loads((folder / "metadata" / "metadata").read_text())
    except (seal.BrokenSealError, OSError, ValueError) as error:
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {error}") from error
    if not isinstance(metadata, dict) or "variant" not in metadata:
        raise DamagedCheckpointError(
            f"checkpoint {folder} was not written by lrnet_jax: no 'variant'"
        )
    if folder.name.isdecimal() and metadata.get("step") != int(folder.name):
        raise DamagedCheckpointError(
            f"checkpoint {folder} is of step {metadata.get('step')}; it was renamed or copied here"
        )
    return metadata


def has_ema(folder: pathlib.Path) -> bool:
    """Whether a step directory holds averaged weights."""
    return (folder / EMA).is_dir()


def read_model(folder: pathlib.Path, like: Tree, item: str = MODEL) -> Tree:
    """The arrays of a step directory's network.

    Args:
      folder: a step directory.
      like: {"params": ..., "batch_stats": ...}, arrays or shapes. Leaves that the checkpoint
        stores in another shape or dtype are an error; `stored_shapes` returns what is stored.
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


def read_state(folder: pathlib.Path, like: TrainState) -> TrainState:
    """The state in a step directory.

    Args:
      folder: a step directory.
      like: a state of its shapes and dtypes, on the shardings to restore into.

    Raises:
      CheckpointError: unreadable, or of another network.
    """
    model = _restore_item(folder, "model", _abstract(model_item(like)))
    training = _restore_item(folder, "training", _abstract(training_item(like)))
    ema = None if like.ema is None else read_model(folder, like.ema, EMA)
    return TrainState(**model, **training, ema=ema)


def stored_shapes(folder: pathlib.Path, item: str = "model") -> dict[str, tuple[Any, Any]]:
    """What an item of a checkpoint holds: path ("params/stem/...") to (shape, dtype)."""
    import orbax.checkpoint as ocp

    try:
        with ocp.StandardCheckpointer(multiprocessing_options=alone()) as checkpointer:
            tree = checkpointer.metadata(folder / item).item_metadata.tree
    except Exception as error:  # Orbax raises many kinds; all mean that it cannot be read
        raise _unreadable(folder, item, error) from error
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


def alone() -> "ocp.options.MultiprocessingOptions":
    """Makes Orbax wait for no other process; every process holds the same state."""
    import orbax.checkpoint as ocp

    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"p{process}"
    )


def model_item(state: TrainState) -> Tree:
    """What the item "model" holds."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def training_item(state: TrainState) -> Tree:
    """What the item "training" holds."""
    return {"opt_state": state.opt_state, "step": state.step, "rng": state.rng}


def _abstract(tree: Tree) -> Tree:
    def leaf(array: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(array, "sharding", None)
        if sharding is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)


def _restore_item(folder: pathlib.Path, item: str, abstract: Tree) -> Tree:
    import orbax.checkpoint as ocp

    if item in (MODEL, EMA):
        _check_model(folder, item, abstract)
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=alone()) as checkpointer:
            return checkpointer.restore(folder / item, abstract)
    except Exception as error:  # Orbax raises many kinds; all mean that it cannot be read
        raise _unreadable(folder, item, error) from error


def _unreadable(folder: pathlib.Path, item: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {folder} cannot be read ({item}), though its files are those that were "
        f"saved: {first_line(error)}; use the version of orbax-checkpoint that wrote it, or "
        "delete that directory to resume from the one before it"
    )


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


def first_line(error: Exception) -> str:
    """Kind and message of an error of another library, shortened to a line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"


def _set_aside(folder: pathlib.Path) -> None:
    for number in itertools.count(1):
        target = folder.with_name(f"{folder.name}{DAMAGED}{number if number > 1 else ''}")
        if not target.exists():
            folder.rename(target)
            return
