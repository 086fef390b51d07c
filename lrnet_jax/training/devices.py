"""A step on all devices: one replicated state, the batch split over the devices.

The steps themselves know only the name of the axis. `parallel` holds what wraps them, and is the
one place that knows of two ways:

    pmap        each process calls a program of its own devices; the default
    shard_map   one program over the devices of all processes, under jit. pmap is in maintenance,
                and makes its results anew from global arrays at every call across processes

Both take the same state and batches, and give the same numbers but for rounding.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lrnet_jax.data.dataset import Batch
from lrnet_jax.functional import Tree

AXIS = "batch"  # the axis of collectives: the devices

DeviceBatch = dict[str, jax.Array]
Way = Literal["pmap", "shard_map"]
# Of products of float32 arrays: "float32", or "tf32", in which a GPU rounds the factors to 11 bits.
Precision = Literal["float32", "tf32"]
MATMUL_PRECISION: dict[Precision, str] = {"float32": "float32", "tf32": "tensorfloat32"}

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def parallel(
    step: Callable[[Argument, DeviceBatch], Result],
    *,
    donate: bool = False,
    devices: Sequence[jax.Device] | None = None,
    way: Way = "pmap",
    precision: Precision = "float32",
) -> Callable[[Argument, DeviceBatch], Result]:
    """`step(state, batch)` on all devices: one state for all, the batch split on axis 0.

    State and results are single, replicated arrays; they are never stacked.

    Args:
      step: a `TrainStep`, or from `eval_step`.
      donate: whether the memory of the state passed in is used for the one returned.
      devices: to use; all by default.
      way: see above.
      precision: of matrix products and convolutions of float32 arrays on a GPU, where JAX by itself
        takes tf32. bfloat16 arrays and CPUs do not depend on it.
    """
    donated = (0,) if donate else ()

    def precise(state: Argument, batch: DeviceBatch) -> Result:
        with jax.default_matmul_precision(MATMUL_PRECISION[precision]):
            return step(state, batch)

    if way == "shard_map":
        return _shard_map(precise, donated, devices or jax.devices())
    return jax.pmap(
        precise,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=donated,
        devices=devices,
    )


def _shard_map(
    step: Callable[[Argument, DeviceBatch], Result],
    donated: tuple[int, ...],
    devices: Sequence[jax.Device],
) -> Callable[[Argument, DeviceBatch], Result]:
    """The step as one program over a mesh of devices."""
    whole, split = jax.P(), jax.P(AXIS)
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))

    def on_a_device(state: Argument, shares: DeviceBatch) -> Result:
        return step(state, {name: share[0] for name, share in shares.items()})

    # The types of shard_map do not understand all implementations of the operator.
    mapped = jax.shard_map(
        on_a_device, mesh=mesh, in_specs=(whole, split), out_specs=whole, check_vma=False
    )
    compiled = jax.jit(mapped, donate_argnums=donated)
    if jax.process_count() == 1:
        return compiled

    def across_processes(state: Argument, shares: DeviceBatch) -> Result:
        # Both say that local arrays are parts of global ones, and copy nothing.
        state = multihost_utils.host_local_array_to_global_array(state, mesh, whole)
        shares = multihost_utils.host_local_array_to_global_array(shares, mesh, split)
        return compiled(state, shares)

    return across_processes


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
