"""Classes of a data set and of a network: which is which."""

import pytest

from experiments.config import ConfigError
from experiments.run.class_map import map_classes
from lrnet_jax.data.imagenet_names import readable, synsets


def columns(data, network):
    return map_classes(data, len(data), network, len(network)).columns


def test_the_same_classes_need_no_map():
    assert map_classes(("a", "b"), 2, ("a", "b"), 2) == (None, "")
    assert map_classes(readable(synsets()), 1000, synsets(), 1000) == (None, "")
    assert map_classes(None, 3, None, 3) == (None, "")
    assert map_classes(("a", "b"), 2, None, 2) == (None, "")


@pytest.mark.parametrize(
    ("data", "network", "wanted"),
    [
        (("b", "a"), ("a", "b"), (1, 0)),
        (("cat", "Dog"), ("ant", "Cat", "dog"), (1, 2)),
        (("a", "A"), ("A", "a", "b"), (1, 0)),  # small letters would make them one
        (("giant panda", "tench"), synsets(), (388, 0)),
        (("n02510455", "n01440764"), readable(synsets()), (388, 0)),
    ],
)
def test_names_decide(data, network, wanted):
    assert columns(data, network) == wanted


def test_folders_that_are_numbers_are_labels():
    """As in ImageNet-V2, where "10" comes before "2" in the order of names."""
    names = sorted(map(str, range(1000)))
    assert names[:3] == ["0", "1", "10"]
    found = map_classes(names, 1000, synsets(), 1000)
    assert found.columns == tuple(map(int, names))
    assert found.note == "classes of the data set are named by their labels"
    assert columns(("1", "0"), ("0", "1")) == (1, 0)


def test_some_of_the_classes_compete_alone():
    found = map_classes(("c", "a"), 2, ("a", "b", "c"), 3)
    assert found.note == (
        "classes of the data set are matched by name, and are 2 of the network's 3; "
        "only they compete"
    )


@pytest.mark.parametrize(
    ("data", "network", "message"),
    [
        (("a", "x", "y"), ("a", "b", "c"), "has not: 'x', 'y'; the network's are 'a', 'b', 'c'"),
        (("0", "1", "3"), ("a", "b", "c"), "has not: '0', '1', '3'; "),
        (("1", "01"), ("a", "b"), "has not: '1', '01'; "),
        (tuple("vwxyz"), tuple("abcde"), "'v', 'w', 'x' and 2 more; .* 'c' and 2 more. Rename"),
        (None, ("a", "b"), "3 classes and the network 2, and the data set's have no names"),
    ],
)
def test_classes_that_the_network_has_not(data, network, message):
    with pytest.raises(ConfigError, match=message) as raised:
        map_classes(data, 3 if data is None else len(data), network, len(network))
    assert "\n" not in str(raised.value)
