"""The report of an evaluation: what does not need a network (`test_evaluate.py` has the rest)."""

import numpy as np

from experiments.report.evaluation_report import add_blocks


def test_neighbouring_classes_are_added_up():
    matrix = np.random.default_rng(0).integers(0, 9, (7, 7))
    found = add_blocks(matrix, 3)
    assert found.shape == (3, 3)
    for row in range(3):
        for column in range(3):
            square = matrix[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            assert found[row, column] == square.sum()
    np.testing.assert_array_equal(add_blocks(matrix, 1), matrix)
