"""Image files: which are meant, in which order, and those that cannot be read."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from experiments.config import ConfigError
from experiments.run import image_files
from lrnet_jax.data import BadImageError
from lrnet_jax.preprocessing import Preprocessing

AS_IS = Preprocessing(4, 4, (0.0,) * 3, (1.0,) * 3)


def test_files_and_the_images_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "deep/er/c.webp", ".git/d.png"):
        path = pathlib.Path("photos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    pathlib.Path("photos/deep/loop").symlink_to("..")
    pathlib.Path("elsewhere").mkdir()
    pathlib.Path("elsewhere/e.gif").touch()
    pathlib.Path("photos/linked").symlink_to("../elsewhere")
    found = image_files.list_files(["z.png", "photos", "notes"])
    assert [str(path) for path in found] == [
        "z.png", "photos/a.JPG", "photos/b.png", "photos/deep/er/c.webp", "photos/linked/e.gif",
        "notes",
    ]  # fmt: skip


def test_no_images(tmp_path):
    with pytest.raises(ConfigError, match="no image is given; name files or folders"):
        image_files.list_files([])
    with pytest.raises(ConfigError, match=rf"folder {tmp_path} has no images, .* \.jpg, "):
        image_files.list_files([str(tmp_path)])


def test_images_come_in_their_order_with_the_bad_ones_in_place(tmp_path):
    files = []
    for number in range(100):
        path = tmp_path / f"{number}.png"
        if number % 7 == 3:
            path.write_text("no image")
        else:
            Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(path)
        files.append(path)
    for number, image in enumerate(image_files.read_ahead(files, AS_IS)):
        assert image.path == files[number]
        if number % 7 == 3:
            assert isinstance(image.pixels, BadImageError)
        else:
            np.testing.assert_array_equal(image.pixels, np.full((4, 4, 3), number, np.uint8))
    assert number == 99
