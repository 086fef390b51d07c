"""Writes the checkpoints of a run: in the background, sealed, thinned out.

    CHECKPOINTS/120.orbax-checkpoint-tmp   being written, or left by a process that was killed
    CHECKPOINTS/120                        complete: it got its name, with its seal in it, at once
    CHECKPOINTS/120.removed                no longer kept, being deleted
    CHECKPOINTS/120.damaged                set aside by `checkpoints.restore`

Only the first process of a run writes, and it writes host copies. Every process holds the same
state, so nothing is gathered and no process waits for another.
"""

import pathlib
import shutil
from collections.abc import Sequence

import jax
import orbax.checkpoint as ocp

from lrnet_jax.functional import Tree
from lrnet_jax.training import checkpoints
from lrnet_jax.training.checkpoints import CheckpointError, Metadata, first_line
from lrnet_jax.training.seal import write_seal
from lrnet_jax.training.state import TrainState

TEMPORARY = ".orbax-checkpoint-tmp"
REMOVED = ".removed"


def surplus(
    steps: Sequence[int], *, newest: int, every: int | None = None, best: int | None = None
) -> list[int]:
    """The checkpoints that are not kept.

        surplus([1, 2, 3, 4, 5, 6], newest=2, every=3, best=1) -> [2, 4]

    Args:
      steps: of the existing checkpoints, rising.
      newest: how many of the last to keep, at least 1.
      every: keeps those whose step is a multiple of it.
      best: keeps the one of this step.
    """
    kept = {*steps[-newest:], best}
    return [step for step in steps if step not in kept and not (every and step % every == 0)]


class CheckpointSaver:
    """Saves the states of a run. As a context manager it waits for the last save at the end."""

    def __init__(self, workdir: pathlib.Path, *, newest: int, every: int | None = None) -> None:
        """Prepares the folder of checkpoints, of which this process must be the only writer.

        Args:
          workdir: of the run.
          newest: how many of the last checkpoints to keep.
          every: also keeps those whose step is a multiple of it.
        """
        self._folder = (workdir / checkpoints.FOLDER).absolute()
        self._newest, self._every = newest, every
        self._best: int | None = None
        self._saving: int | None = None
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if path.name.endswith((TEMPORARY, REMOVED)):
                shutil.rmtree(path)
        self._writer = ocp.AsyncCheckpointer(
            _handler("model", "ema", "training"),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            multiprocessing_options=checkpoints.alone(),
        )

    def save(self, state: TrainState, metadata: Metadata, best: int | None = None) -> None:
        """Starts saving a state; returns once the arrays are copied off the devices.

        Args:
          state: to save; nothing is done if its step has a checkpoint already.
          metadata: see `checkpoints.read_metadata`; the step is added.
          best: the step whose checkpoint is kept as the best from now on.

        Raises:
          CheckpointError: this or the save before it failed.
        """
        step = int(jax.device_get(state.step))
        self.wait()
        self._best = best
        self._remove_surplus()
        if (self._folder / str(step)).is_dir():
            return
        self._saving = step
        host = jax.device_get(state)
        averages = {} if state.ema is None else {checkpoints.EMA: ocp.args.StandardSave(host.ema)}
        try:
            self._writer.save(
                self._folder / str(step),
                args=ocp.args.Composite(
                    **averages,
                    model=ocp.args.StandardSave(checkpoints.model_item(host)),
                    training=ocp.args.StandardSave(checkpoints.training_item(host)),
                    metadata=ocp.args.JsonSave({**metadata, "step": step}),
                ),
            )
        except Exception as error:  # of many kinds, from Orbax and TensorStore
            raise self._failure(error) from error

    def check(self) -> None:
        """Raises CheckpointError if the save in the background has failed; does not wait."""
        try:
            self._writer.check_for_errors()
        except Exception as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Waits for the save in the background.

        Raises:
          CheckpointError: it failed.
        """
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error
        self._saving = None

    def __enter__(self) -> "CheckpointSaver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.wait()
            self._remove_surplus()
            self._writer.close()
            return
        try:  # an error is being raised already, so that of the save is not reported
            self._writer.close()
        except Exception:
            self._discard()

    def _seal(self) -> None:
        # Called by Orbax in its thread, between the last file and the directory's name.
        write_seal(self._folder / f"{self._saving}{TEMPORARY}")

    def _remove_surplus(self) -> None:
        steps = checkpoints.steps_in(self._folder)
        for step in surplus(steps, newest=self._newest, every=self._every, best=self._best):
            # Renamed first, because half a checkpoint must not look like one.
            removed = self._folder / f"{step}{REMOVED}"
            (self._folder / str(step)).rename(removed)
            shutil.rmtree(removed)

    def _discard(self) -> None:
        """Frees the space of a save that failed."""
        shutil.rmtree(self._folder / f"{self._saving}{TEMPORARY}", ignore_errors=True)

    def _failure(self, error: Exception) -> CheckpointError:
        self._discard()
        steps = checkpoints.steps_in(self._folder)
        kept = f"the newest one is of step {steps[-1]}" if steps else "there is none yet"
        return CheckpointError(
            f"saving step {self._saving} to {self._folder} failed: {first_line(error)}. "
            f"Checkpoints before it are untouched, {kept}; make room or repair the disk, then "
            "rerun the same command to resume from there"
        )


def write_model(folder: pathlib.Path, model: Tree, metadata: Metadata) -> None:
    """Writes a checkpoint for inference, without the items that only training needs.

    Args:
      folder: to be made; `checkpoints.read_metadata` and `read_model` read it.
      model: {"params": ..., "batch_stats": ...}.
      metadata: see `checkpoints.read_metadata`.
    """
    with ocp.Checkpointer(
        _handler("model"), multiprocessing_options=checkpoints.alone()
    ) as checkpointer:
        checkpointer.save(
            folder.absolute(),
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(jax.device_get(model)),
                metadata=ocp.args.JsonSave(metadata),
            ),
        )
    write_seal(folder)


def _handler(*arrays: str) -> ocp.CompositeCheckpointHandler:
    """Writes items of arrays, and the metadata, without waiting for other processes."""
    alone = checkpoints.alone()
    return ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        metadata=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        # mypy cannot know that no item has the name of another parameter.
        **{item: ocp.StandardCheckpointHandler(multiprocessing_options=alone) for item in arrays},  # type: ignore[arg-type]
    )
