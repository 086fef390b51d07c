"""A miniature of ImageNet's two tars, in the real layout, and the prepared sets made from it.

    python -m tests.lrnet_jax.data.miniature

writes tests/data/imagenet_miniature.tar.xz again (needs the extra `prepare`).
"""

import functools
import io
import pathlib
import tarfile
import tempfile

import numpy as np
from PIL import Image

from lrnet_jax.data import imagenet

ARCHIVE = pathlib.Path(__file__).parents[2] / "data" / "imagenet_miniature.tar.xz"
PHOTOGRAPHS = pathlib.Path(__file__).parents[3] / "experiments" / "bench" / "photographs"
FORMATS = ("array_record", "tfrecord")
SYNSETS = ("n01440764", "n01739381", "n02105855")
TRAIN_PER_SYNSET = 6
TRAIN = TRAIN_PER_SYNSET * len(SYNSETS)
VALIDATION = 10
SIZE = 24
EXPECTED = {"train": TRAIN, "validation": VALIDATION}
# The real set has 22 CMYK images and a PNG, all under the name .JPEG; TFDS knows them by name.
CMYK = "n01739381_1309.JPEG"
PNG = "n02105855_2933.JPEG"


@functools.cache
def photograph(name):
    """One of the four photographs, at a third of its size."""
    with Image.open(PHOTOGRAPHS / f"{name}.jpg") as file:
        return file.convert("RGB").reduce(3)


def image(seed, mode="RGB", format="JPEG"):
    """Encodes a piece of a photograph, of a random size."""
    random = np.random.default_rng(seed)
    whole = photograph(("astronaut", "chelsea", "coffee", "rocket")[random.integers(4)])
    width, height = (int(random.integers(40, side)) for side in whole.size)
    left, top = (
        int(random.integers(whole_side - side + 1))
        for whole_side, side in zip(whole.size, (width, height), strict=True)
    )
    piece = whole.crop((left, top, left + width, top + height))
    buffer = io.BytesIO()
    piece.convert(mode).save(buffer, format, quality=80)
    return buffer.getvalue()


def train_images():
    """Synset to name to bytes."""
    images = {}
    for i, synset in enumerate(SYNSETS):
        numbers = [*range(1, TRAIN_PER_SYNSET), 18]
        images[synset] = {f"{synset}_{n}.JPEG": image((i, n)) for n in numbers}
    for special, encoded in ((CMYK, image(1, mode="CMYK")), (PNG, image(2, format="PNG"))):
        folder = images[special.partition("_")[0]]
        folder.pop(next(iter(folder)))
        folder[special] = encoded
    gray = "n01440764_18.JPEG"
    images["n01440764"][gray] = image(3, mode="L")
    return images


def validation_images():
    """Name to bytes."""
    return {f"ILSVRC2012_val_{i:08d}.JPEG": image((9, i)) for i in range(1, VALIDATION + 1)}


def tar(files):
    """Packs a dict of name to bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_tars(folder, train=None, validation=None):
    """Writes both tars, with other contents where they are given."""
    train = train_images() if train is None else train
    validation = validation_images() if validation is None else validation
    outer = tar({f"{synset}.tar": tar(files) for synset, files in train.items()})
    (folder / "ILSVRC2012_img_train.tar").write_bytes(outer)
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(validation))


def unpack(folder):
    """Unpacks the prepared sets to folder/array_record and folder/tfrecord, two shards a split."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")


def open_miniature(folder, **options):
    """Opens a prepared set in this process, with crops of a few pixels."""
    options = {
        "image_size": SIZE,
        "num_workers": 0,
        "expected_counts": EXPECTED,
    } | options
    return imagenet.open_prepared("imagenet2012", data_dir=str(folder), **options)


def main():
    from experiments.prepare.imagenet_builder import prepare
    from experiments.prepare.imagenet_tars import Counts

    counts = Counts(synsets=len(SYNSETS), train=TRAIN, validation=VALIDATION)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_tars(folder)
        ARCHIVE.parent.mkdir(exist_ok=True)
        with tarfile.open(ARCHIVE, "w:xz") as archive:
            for format in FORMATS:
                target = prepare(folder, folder / format, format, counts=counts, num_shards=2)
                archive.add(target, target.relative_to(folder))


if __name__ == "__main__":
    main()
