"""A step on all devices: one replicated state, the batch split over the devices.

The steps themselves know only the name of the axis; `parallel` holds the one line that wraps them.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np

from lrnet_jax.data.dataset import Batch
from lrnet_jax.functional import Tree

AXIS = "batch"  # the axis of collectives: the devices

DeviceBatch = dict[str, jax.Array]

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def parallel(
    step: Callable[[Argument, DeviceBatch], Result],
    *,
    donate: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[Argument, DeviceBatch], Result]:
    """`step(state, batch)` on all devices: one state for all, the batch split on axis 0.

    State and results are single, replicated arrays; they are never stacked.

    Args:
      step: a `TrainStep`, or from `eval_step`.
      donate: whether the memory of the state passed in is used for the one returned.
      devices: to use; all local ones by default.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=(0,) if donate else (),
        devices=devices,
    )


def replicate(tree: Tree, devices: Sequence[jax.Device] | None = None) -> Tree:
    """Copies a tree of host or device arrays onto every device."""
    return jax.device_put(tree, _sharding(devices, jax.sharding.PartitionSpec()))


def shard(batch: Batch, devices: Sequence[jax.Device] | None = None) -> DeviceBatch:
    """Sends a host batch to the devices, split on axis 0: (b, ...) -> (n, b / n, ...).

    Raises:
      ValueError: b is not divisible by the number of devices. (pmap itself would silently use
        fewer devices for a shorter leading axis.)
    """
    count = len(devices or jax.local_devices())
    size = len(next(iter(batch.values())))
    if size % count:
        raise ValueError(f"a batch of {size} cannot be split over {count} devices")
    shares = {
        name: np.reshape(array, (count, size // count, *array.shape[1:]))
        for name, array in batch.items()
    }
    return jax.device_put(shares, _sharding(devices, jax.sharding.PartitionSpec(AXIS)))


def _sharding(
    devices: Sequence[jax.Device] | None, spec: jax.sharding.PartitionSpec
) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.array(devices or jax.local_devices()), (AXIS,))
    return jax.sharding.NamedSharding(mesh, spec)
