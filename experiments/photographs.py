"""Writes a small folder of images: pieces of three photographs of this package, a class for each.

    python -m experiments.photographs --out=runs/photographs
    python -m experiments.train --config=finetune_quick

The folder has train/CLASS and val/CLASS. Pieces of one photograph overlap, so it shows that a
command works, and not how good a network is.
"""

import importlib.resources
import io
import pathlib

import numpy as np
from absl import flags
from PIL import Image

from experiments.cli import command_line
from experiments.run.new_folder import check_new, new_folder

CLASSES = ("astronaut", "chelsea", "coffee")
PIECES = {"train": 40, "val": 10}  # of each class
SIDE = 64


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string(
        "out", None, "Folder to write, which does not exist yet.", flag_values=flag_values
    )


def main(options: flags.FlagValues) -> None:
    """Entry point."""
    out = check_new(command_line.require(options, "out", "runs/photographs"), "out")
    with new_folder(out) as part:
        for number, name in enumerate(CLASSES):
            _write_class(part, name, np.random.default_rng(number))
    counts = " and ".join(f"{count} in {split}/" for split, count in PIECES.items())
    print(f"wrote {out}: {len(CLASSES)} classes with {counts}, {SIDE} x {SIDE}")


def _write_class(folder: pathlib.Path, name: str, random: np.random.Generator) -> None:
    """Writes the pieces of a photograph for both splits."""
    photograph = _read(name)
    for split, count in PIECES.items():
        below = folder / split / name
        below.mkdir(parents=True)
        for piece in range(count):
            _cut(photograph, random).save(below / f"{piece:03d}.jpg", quality=90)


def _read(name: str) -> Image.Image:
    file = importlib.resources.files("experiments.bench").joinpath(f"photographs/{name}.jpg")
    return Image.open(io.BytesIO(file.read_bytes())).convert("RGB")


def _cut(photograph: Image.Image, random: np.random.Generator) -> Image.Image:
    """A random square with at least half of the shorter side."""
    side = int(min(photograph.size) * random.uniform(0.5, 1))
    left, top = (int(random.integers(whole - side + 1)) for whole in photograph.size)
    box = (left, top, left + side, top + side)
    return photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)


if __name__ == "__main__":
    command_line.run(main, define_flags)
