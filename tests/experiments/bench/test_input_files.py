"""The images that the input benchmark reads."""

import numpy as np
import pytest

from experiments.bench.input_files import open_split, write_photographs
from tests.lrnet_jax.data.image_folders import three_classes, write


def test_photographs_have_the_size_and_weight_of_imagenets(tmp_path):
    split = write_photographs(tmp_path, copies=2)
    examples = [split.example(index) for index in range(8)]
    assert [example.label for example in examples] == [0, 1, 2, 3] * 2
    assert np.mean([len(example.encoded) for example in examples]) == pytest.approx(94e3, rel=0.05)
    assert {split.decode(i, example).size for i, example in enumerate(examples)} == {(477, 403)}


def test_the_same_photographs_are_a_folder(tmp_path):
    split = open_split("folder", None, tmp_path)
    assert (len(split), split.num_classes) == (256, 4)
    records = write_photographs(tmp_path, copies=1)
    want = {(e.encoded, e.label) for e in map(records.example, range(4))}
    assert {(e.encoded, e.label) for e in map(split.example, range(len(split)))} == want


def test_a_folder_of_ones_own_needs_no_split(tmp_path):
    write(tmp_path, three_classes(2))
    assert len(open_split("folder", str(tmp_path), tmp_path / "nothing")) == 6
