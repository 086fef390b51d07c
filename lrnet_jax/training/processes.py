"""Several processes that train one network: what they must know of each other.

Each process runs the same loop over its own share of every batch; the gradients are averaged over
the devices of all. The first process alone reads checkpoints, writes checkpoints and logs, and
tells the others what it found; a file system that all of them see is not needed for the workdir.
"""

import collections
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lrnet_jax.functional import Tree

HEARTBEAT_SECONDS = 60  # after so long without a sign of life a process counts as lost
LAG = 2  # steps between a vote and its count; the devices are never waited for


class LostProcessError(RuntimeError):
    """Another process of the run is gone; the message says what to do."""


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects this process to the others of its run; before any other use of JAX.

    Args:
      coordinator: HOST:PORT of the first process; None where JAX detects the environment (Slurm,
        Open MPI, Kubernetes), as for the other two.
      num_processes: of the run.
      process_id: of this one, from 0.

    Raises:
      ValueError: nothing given and no environment detected, or the three contradict each other.
      RuntimeError: the others cannot be reached.
    """
    # JAX would catch SIGTERM for itself and keep it from `stopping`.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )


def is_first() -> bool:
    """Whether this process reads and writes for all."""
    return jax.process_index() == 0


def are_several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def broadcast(value: Any) -> Any:
    """The first process's value, in all processes; of JSON types."""
    if not are_several():
        return value
    text = np.frombuffer(json.dumps(value if is_first() else None).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array([len(text)], np.int32))[0])
    buffer = np.zeros(size, np.uint8)
    if is_first():
        buffer[:] = text
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes())


def broadcast_arrays(tree: Tree) -> Tree:
    """The first process's arrays, in all processes, bit for bit.

    Args:
      tree: of the same structure, shapes and dtypes everywhere.

    Returns:
      Host arrays.
    """
    if not are_several():
        return tree
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, jax.device_get(tree)))
    # As bytes: they travel as a sum with zeros, in which -0 would lose its sign. At once: a program
    # is compiled for every length.
    mine = np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes()
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    parts = [
        np.frombuffer(told[end - leaf.nbytes : end], leaf.dtype).reshape(leaf.shape)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)


class Agreement:
    """Lets processes do a thing at the same step though only one of them asks for it.

    A vote is counted on the devices, in step with the training steps, and read `LAG` steps later,
    when it is there: all processes read the same count at the same step. With a single process
    votes hold at once.
    """

    def __init__(self) -> None:
        self._counts: collections.deque[jax.Array] = collections.deque()
        self._count = jax.pmap(lambda votes: jax.lax.pmax(votes, "all"), axis_name="all")

    def poll(self, *votes: bool) -> tuple[bool, ...]:
        """To be called once a step by every process; which of the votes any process cast."""
        if not are_several():
            return votes
        mine = np.tile(np.array(votes, np.int32), (jax.local_device_count(), 1))
        self._counts.append(self._count(mine))
        if len(self._counts) <= LAG:
            return (False,) * len(votes)
        oldest = self._counts.popleft().addressable_data(0)
        return tuple(bool(count) for count in np.asarray(oldest).ravel())


@contextlib.contextmanager
def explain_losses() -> Iterator[None]:
    """Turns the error of a broken connection between processes into `LostProcessError`."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # ValueError: what a dispatch raises whose input could not be computed.
        if not are_several() or (isinstance(error, ValueError) and "Gloo" not in str(error)):
            raise
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LostProcessError(
            f"process {jax.process_index()} of {jax.process_count()} lost the others ({line}); "
            "start all of them again with the same command: the run goes on from its newest "
            "checkpoint"
        ) from error
