"""Makes the embedded subset of Fashion-MNIST from the four original files.

    python -m lrnet_jax.data.make_fashion_mnist DIR

DIR holds train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the two of t10k. Of each class
1,000 training images and 200 test images are drawn by a fixed seed and kept in the order of the
original files. A sheet has one image per 28 x 28 tile, in class order, so a label is a place.
"""

import argparse
import gzip
import pathlib

import numpy as np
from PIL import Image

from lrnet_jax.data.in_memory import FASHION_CLASSES, TILE, TILES_PER_ROW

SEED = 20190422  # the day the paper appeared
FILES = {"train": ("train", 1000), "test": ("t10k", 200)}  # split: (prefix, images per class)


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Reads a gzipped idx file of unsigned bytes."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} must be a gzipped idx file of bytes, it begins {data[:4]!r}")
    rank = data[3]
    shape = np.frombuffer(data, ">u4", count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def select(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Indices of `per_class` images of each class, class by class, ascending within one."""
    random = np.random.default_rng(SEED)
    return np.concatenate(
        [
            np.sort(random.choice(np.flatnonzero(labels == label), per_class, replace=False))
            for label in range(len(FASHION_CLASSES))
        ]
    )


def sheet(images: np.ndarray) -> np.ndarray:
    """Lays (n, 28, 28) images out in rows of 100 tiles."""
    rows = len(images) // TILES_PER_ROW
    tiles = images.reshape(rows, TILES_PER_ROW, TILE, TILE).transpose(0, 2, 1, 3)
    return tiles.reshape(rows * TILE, TILES_PER_ROW * TILE)


def main() -> None:
    """Writes both sheets beside this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=pathlib.Path, help="folder of the four original files")
    source = parser.parse_args().source
    for split, (prefix, per_class) in FILES.items():
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        target = pathlib.Path(__file__).with_name(f"fashion_mnist_{split}.png")
        Image.fromarray(sheet(images[select(labels, per_class)])).save(target, optimize=True)
        print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
