"""Evaluation crops of photographs as torchvision makes them, kept for machines without it.

    python -m tests.lrnet_jax.data.torchvision_golden

writes tests/data/torchvision_evaluation.npz again.
"""

import pathlib

import numpy as np
from PIL import Image

FILE = pathlib.Path(__file__).parents[2] / "data" / "torchvision_evaluation.npz"
PHOTOGRAPHS = pathlib.Path(__file__).parents[3] / "experiments" / "bench" / "photographs"
# Photograph, size it is cut to, side of the crop. Longer sides and offsets that must be rounded.
CASES = (
    ("chelsea", (477, 403), 224),
    ("coffee", (400, 301), 56),
    ("astronaut", (200, 333), 56),
    ("rocket", (300, 400), 56),
    ("rocket", (97, 50), 56),
    ("coffee", (477, 76), 28),
)


def photograph(name, size):
    with Image.open(PHOTOGRAPHS / f"{name}.jpg") as image:
        return image.convert("RGB").crop((0, 0, *size))


def by_torchvision(image, image_size):
    """Resize(256), CenterCrop(224) for 224, and in proportion."""
    from torchvision.transforms import InterpolationMode, v2

    resize = v2.Resize(image_size * 256 // 224, interpolation=InterpolationMode.BICUBIC)
    return np.asarray(v2.CenterCrop(image_size)(resize(image)))


def main():
    crops = [by_torchvision(photograph(name, size), side) for name, size, side in CASES]
    np.savez_compressed(FILE, *crops)


if __name__ == "__main__":
    main()
