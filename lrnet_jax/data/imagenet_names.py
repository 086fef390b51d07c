"""ImageNet's 1000 classes: their synsets in the order of the labels, and a name for each."""

import collections
import functools
import pathlib
from collections.abc import Iterable, Mapping

FILE = pathlib.Path(__file__).with_name("imagenet_names.tsv")


@functools.cache
def names() -> Mapping[str, str]:
    """Synset to name, {"n01440764": "tench", ...}, in the order of the labels.

    A name that two synsets share ("sunglasses") is followed by its synset.
    """
    pairs = [line.split("\t") for line in FILE.read_text().splitlines()]
    times = collections.Counter(name for _, name in pairs)
    return {synset: name if times[name] == 1 else f"{name} ({synset})" for synset, name in pairs}


def synsets() -> tuple[str, ...]:
    """The class names of ImageNet as TFDS and its folders have them, in the order of the labels."""
    return tuple(names())


def readable(class_names: Iterable[str]) -> tuple[str, ...]:
    """The same names, with those that are synsets of ImageNet in words."""
    return tuple(names().get(name, name) for name in class_names)
