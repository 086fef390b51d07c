"""The names of ImageNet's classes."""

import re

from lrnet_jax.data.imagenet_names import names, readable, synsets


def test_a_thousand_synsets_in_the_order_of_the_labels():
    """Labels number the folders of the training images in the order of their names."""
    assert len(synsets()) == 1000
    assert list(synsets()) == sorted(synsets())
    assert all(re.fullmatch(r"n\d{8}", synset) for synset in synsets())
    assert [synsets()[label] for label in (0, 388, 999)] == ["n01440764", "n02510455", "n15075141"]


def test_names_are_words_and_differ():
    assert len(set(names().values())) == 1000
    assert readable(["n02510455", "n04355933", "shoe"]) == (
        "giant panda", "sunglasses (n04355933)", "shoe",
    )  # fmt: skip
