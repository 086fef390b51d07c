"""The images that the input benchmark reads."""

import numpy as np
import pytest

from experiments.bench.input_files import write_photographs


def test_photographs_have_the_size_and_weight_of_imagenets(tmp_path):
    split = write_photographs(tmp_path, copies=2)
    examples = [split.example(index) for index in range(8)]
    assert [example.label for example in examples] == [0, 1, 2, 3] * 2
    assert np.mean([len(example.encoded) for example in examples]) == pytest.approx(94e3, rel=0.05)
    assert {split.decode(i, example).size for i, example in enumerate(examples)} == {(477, 403)}
