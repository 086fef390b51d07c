"""From a file's arrays to a network's, and back. Every array is used once and none is left over."""

import functools
from collections.abc import Mapping

import numpy as np

from lrnet_jax.foreign.names import COUNTERS, Tensor, classes_in, head_name, tensors
from lrnet_jax.functional import Tree, split
from lrnet_jax.model_zoo import get_variant, list_models
from lrnet_jax.networks import Network
from lrnet_jax.training.checkpoints import CheckpointError, flatten
from lrnet_jax.variant import Variant

NAMED = 4  # names in a message; the rest is counted


def to_tree(arrays: Mapping[str, np.ndarray], variant: Variant) -> tuple[Tree, int]:
    """The arrays of a file as those of a network.

    Args:
      arrays: by the names of the file, see `names.py`. Counters of torch are left out.
      variant: the network.

    Returns:
      {"params": ..., "batch_stats": ...}, float32 on the host, and the number of classes.

    Raises:
      CheckpointError: arrays are missing or left over, have other shapes, are not of floats, or
        are not finite. The message lists them, and the network whose arrays they are, if any.
    """
    arrays = {name: array for name, array in arrays.items() if not name.endswith(COUNTERS)}
    num_classes = _num_classes(arrays, variant)
    wanted = tensors(variant, num_classes)
    if faults := _faults(arrays, wanted):
        raise CheckpointError(f"{'; '.join(faults)}{_hint(arrays)}")
    tree: Tree = {}
    for tensor in wanted:
        *folders, leaf = tensor.path.split("/")
        node = functools.reduce(lambda node, key: node.setdefault(key, {}), folders, tree)
        node[leaf] = tensor.to_ours(_checked(tensor.name, arrays[tensor.name]))
    return tree, num_classes


def to_arrays(model: Network) -> dict[str, np.ndarray]:
    """The arrays of a network by the names of a file, float32.

    torch loads them with `load_state_dict`, which adds the counters that it misses.
    """
    is_training = model.stem[0].norm.use_running_average is False
    _, params, batch_stats = split(model)
    model.train() if is_training else model.eval()
    ours = flatten({"params": params, "batch_stats": batch_stats})
    return {
        tensor.name: tensor.to_theirs(np.asarray(ours[tensor.path]))
        for tensor in tensors(model.variant, model.num_classes)
    }


def _num_classes(arrays: Mapping[str, np.ndarray], variant: Variant) -> int:
    head = arrays.get(head_name(variant))
    if head is None or head.ndim != 2:
        raise CheckpointError(
            f"the weights have no {head_name(variant)}, the head of a network; "
            f"they hold {_listed(sorted(arrays))}{_hint(arrays)}"
        )
    return classes_in(variant, head.shape)


def _faults(arrays: Mapping[str, np.ndarray], wanted: list[Tensor]) -> list[str]:
    """What keeps the arrays from being those of a network."""
    shapes = {tensor.name: tensor.shape for tensor in wanted}
    missing = [name for name in shapes if name not in arrays]
    left = [name for name in arrays if name not in shapes]
    other = [
        f"{name} as {list(arrays[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in arrays and arrays[name].shape != shape
    ]
    return [
        f"{text} {_listed(names)}"
        for text, names in (
            ("the weights lack", missing),
            ("have besides", left),
            ("have", other),
        )
        if names
    ]


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _hint(arrays: Mapping[str, np.ndarray]) -> str:
    """Names the network of the zoo whose arrays they are."""
    for network in list_models():
        variant = get_variant(network)
        head = arrays.get(head_name(variant))
        if head is None or head.ndim != 2:
            continue
        if not _faults(arrays, tensors(variant, classes_in(variant, head.shape))):
            return f". They are those of {network}"
    return ""


def _checked(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fV" and array.dtype.name != "bfloat16":
        raise CheckpointError(f"{name} must be of floats, got {array.dtype}; quantised is not read")
    wide = array.astype(np.float32)
    if bad := int(np.sum(~np.isfinite(wide))):
        raise CheckpointError(f"{name} has {bad} of {wide.size} values that are not finite")
    return wide
