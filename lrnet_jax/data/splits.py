"""Splits of a data set by the slices of TFDS, such as "train[:90%]" or "train+test"."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lrnet_jax.data.examples import Examples, Range, Selection


class SplitSize(NamedTuple):
    """What a slice needs to know of a split, with the names of `tfds.core.SplitInfo`."""

    num_examples: int
    shard_lengths: list[int]


def select(
    spec: str, sizes: Mapping[str, SplitSize], open_split: Callable[[str], Examples]
) -> Examples:
    """The examples that a slice names.

    Args:
      spec: a split, a slice of one, or several joined by "+": see
        https://www.tensorflow.org/datasets/splits.
      sizes: of each split.
      open_split: opens a whole split by its name.

    Raises:
      ValueError: it is no slice of these splits, or it is empty.
    """
    if spec in sizes:
        return open_split(spec)
    import tensorflow_datasets as tfds

    infos: Any = sizes  # TFDS reads no more of its SplitInfo
    try:
        parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    except (ValueError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"split {spec!r}: {reason}; there are {', '.join(sizes)}, and slices are written as in "
            "train[:90%]"
        ) from error
    ranges = []
    for part in parts:
        start, stop = part.from_ or 0, part.to
        stop = sizes[part.splitname].num_examples if stop is None else stop
        if start < stop:
            ranges.append(Range(open_split(part.splitname), start, stop))
    if not ranges:
        raise ValueError(f"split {spec!r} holds no image")
    return Selection(spec, tuple(ranges))
