"""The images that figure 5 is drawn on."""

import numpy as np

from experiments.report.figure_images import choose_of_many_classes


def test_images_are_of_many_classes():
    images = np.arange(7)[:, None, None, None] * np.ones((1, 2, 2, 3))
    labels = np.array([3, 3, 1, 3, 1, 2, 0])
    batch = {"image": images, "label": labels, "mask": np.arange(7) < 6}
    chosen = choose_of_many_classes(batch, 4)
    assert chosen[:, 0, 0, 0].tolist() == [0, 2, 5, 1]
