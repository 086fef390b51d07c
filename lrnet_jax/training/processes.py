"""Several processes that train one network, and what they exchange.

Each process runs the same loop over its share of every batch. The gradients are averaged over the
devices of all processes. Only the first process reads and writes the workdir, and it broadcasts
what it found there, so the workdir needs no shared file system.
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

HEARTBEAT_SECONDS = 60  # a process that is silent for longer counts as lost
LAG = 2  # steps between a vote and its count, so that no process waits for the devices


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
    # JAX would catch SIGTERM, and `stopping` would not see it.
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
    """The first process's value in all processes. It consists of JSON types."""
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
    # As bytes, because arrays are sent as a sum with zeros, in which -0 would lose its sign. All at
    # once, because a program is compiled for every length.
    mine = np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes()
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    parts = [
        np.frombuffer(received[end - leaf.nbytes : end], leaf.dtype).reshape(leaf.shape)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)


class Agreement:
    """Lets all processes act at the same step on the request of one of them.

    Votes are counted on the devices between training steps and read `LAG` steps later, when the
    count is ready. All processes read the same count at the same step. With a single process, votes
    are valid at once.
    """

    def __init__(self) -> None:
        self._counts: collections.deque[jax.Array] = collections.deque()
        self._count = jax.pmap(lambda votes: jax.lax.pmax(votes, "all"), axis_name="all")

    def poll(self, *votes: bool) -> tuple[bool, ...]:
        """Which of the votes any process cast; every process calls this once a step."""
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
        # A dispatch raises ValueError where its input could not be computed.
        if not are_several() or (isinstance(error, ValueError) and "Gloo" not in str(error)):
            raise
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LostProcessError(
            f"process {jax.process_index()} of {jax.process_count()} lost the others ({line}); "
            "start all of them again with the same command to resume from the newest "
            "checkpoint"
        ) from error
