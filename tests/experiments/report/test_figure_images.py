"""The images that figure 5 is drawn on."""

import numpy as np
import pytest

from experiments.config import ConfigError
from experiments.report.figure_images import choose_of_many_classes, read_files


def test_images_are_of_many_classes():
    images = np.arange(7)[:, None, None, None] * np.ones((1, 2, 2, 3))
    labels = np.array([3, 3, 1, 3, 1, 2, 0])
    batch = {"image": images, "label": labels, "mask": np.arange(7) < 6}
    chosen = choose_of_many_classes(batch, 4)
    assert chosen[:, 0, 0, 0].tolist() == [0, 2, 5, 1]


def test_files_are_read_and_named_when_they_cannot_be(tmp_path):
    photograph = "experiments/bench/photographs/chelsea.jpg"
    images = read_files([photograph] * 2, 16)
    assert images.shape == (2, 16, 16, 3)
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("text.jpg", "none.jpg"):
        with pytest.raises(ConfigError, match=f"{name} cannot be read"):
            read_files([str(tmp_path / name)], 16)
