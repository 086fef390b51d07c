"""Which class of a network each class of a data set is.

The two may have other orders, and a data set may have some of the classes only, as ImageNet-A and
ImageNet-R have 200 of ImageNet's. Names decide. Synsets and their words are the same name. The
folders of ImageNet-V2 are numbers, which are the labels.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.config import ConfigError
from lrnet_jax.data import imagenet_names
from lrnet_jax.functional import Functional, Tree

NAMED = 3  # classes in a message; the rest is counted


class ClassMap(NamedTuple):
    """Which class of a network each class of a data set is.

    Attributes:
      columns: the network's class for each class of the data set; None where they are the same.
      note: a sentence about them; "" where they are the same.
    """

    columns: tuple[int, ...] | None
    note: str


@dataclasses.dataclass(frozen=True)
class Selected(Functional):
    """A network that answers with some of its classes, in the order of a data set.

    Attributes:
      columns: the classes.
    """

    columns: tuple[int, ...] = ()

    def apply(self, params: Tree, batch_stats: Tree, images: jax.Array) -> jax.Array:
        """Computes logits (B, classes of the data set) float32 with running statistics."""
        return super().apply(params, batch_stats, images)[:, np.array(self.columns)]


def select(functional: Functional, classes: ClassMap) -> Functional:
    """The network as it is compared with the labels of the data set."""
    if classes.columns is None:
        return functional
    return Selected(functional.train, functional.evaluate, classes.columns)


def map_classes(
    data: Sequence[str] | None, num_data: int, network: Sequence[str] | None, num_network: int
) -> ClassMap:
    """Finds the class of a network for each class of a data set.

    Args:
      data: names of the data set's classes, or None.
      num_data: number of them.
      network: names of the network's classes, or None.
      num_network: number of them.

    Raises:
      ConfigError: the network lacks classes of the data set; or one has no names, and the other
        another number of classes.
    """
    if data is None or network is None:
        if num_data == num_network:
            return ClassMap(None, "")
        nameless = "the data set's" if data is None else "the network's"
        raise ConfigError(
            f"the data set has {num_data} classes and the network {num_network}, and {nameless} "
            "have no names to compare; evaluate on the data set that it was trained on"
        )
    wanted, known = _comparable(data, network)
    if wanted == known:
        return ClassMap(None, "")
    place = {name: label for label, name in enumerate(known)}
    lacking = [name for name, key in zip(data, wanted, strict=True) if key not in place]
    labels = _numbers(data, num_network)
    if len(lacking) == num_data and labels is not None:
        return ClassMap(labels, _note(num_data, num_network, "are named by their labels"))
    if lacking:
        raise ConfigError(
            f"the data set has classes that the network has not: {_some(lacking)}; the network's "
            f"are {_some(imagenet_names.readable(network))}. Rename the classes, or evaluate "
            "another network"
        )
    columns = tuple(place[key] for key in wanted)
    return ClassMap(columns, _note(num_data, num_network, "are matched by name"))


def _note(num_data: int, num_network: int, how: str) -> str:
    note = f"classes of the data set {how}"
    if num_data == num_network:
        return note
    return f"{note}, and are {num_data} of the network's {num_network}; only they compete"


def _comparable(*lists: Sequence[str]) -> list[list[str]]:
    """Names in one form: synsets for the words of ImageNet's classes, and small letters."""
    synsets = {name.casefold(): synset for synset, name in imagenet_names.names().items()}
    compared = [
        [synsets.get(name.casefold(), name.casefold()) for name in names] for names in lists
    ]
    if any(len(set(names)) < len(names) for names in compared):  # that was too much
        return [list(names) for names in lists]
    return compared


def _numbers(names: Sequence[str], count: int) -> tuple[int, ...] | None:
    """Names as labels below `count`, if they are."""
    if not all(name.isdecimal() and int(name) < count for name in names):
        return None
    labels = tuple(map(int, names))
    return labels if len(set(labels)) == len(labels) else None


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(map(repr, names[:NAMED])) + (f" and {more} more" if more > 0 else "")
