"""Image files that a command is given: listed, and read ahead in threads."""

import collections
import concurrent.futures
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.config import ConfigError
from lrnet_jax.data import BadImageError
from lrnet_jax.data.listing import SUFFIXES
from lrnet_jax.preprocessing import Preprocessing

THREADS = min(8, os.cpu_count() or 1)  # Pillow decodes without the lock of the interpreter
AHEAD = 4 * THREADS  # images that are decoded before they are needed


class ReadImage(NamedTuple):
    """An image file.

    Attributes:
      path: as it was given or found.
      pixels: (S, S, 3) uint8, or why it cannot be read.
    """

    path: pathlib.Path
    pixels: np.ndarray | BadImageError


def list_files(arguments: Sequence[str]) -> list[pathlib.Path]:
    """The files that are meant: files as they are, and the images in and below folders.

    Images of a folder are those whose names end as images do (`SUFFIXES`), sorted. Names that
    begin with a dot are left out, and symbolic links are followed.

    Raises:
      ConfigError: none is given, or a folder has none.
    """
    if not arguments:
        raise ConfigError("no image is given; name files or folders, such as cat.jpg photographs/")
    files: list[pathlib.Path] = []
    for argument in arguments:
        path = pathlib.Path(argument)
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(_walk(path))
        if not found:
            endings = ", ".join(sorted(SUFFIXES))
            raise ConfigError(f"folder {path} has no images, files whose names end in {endings}")
        files.extend(found)
    return files


def read_ahead(files: Iterable[pathlib.Path], preprocessing: Preprocessing) -> Iterator[ReadImage]:
    """Reads, resizes and crops files in order, some of them ahead."""

    def read(path: pathlib.Path) -> ReadImage:
        try:
            return ReadImage(path, preprocessing.pixels(path)[0])
        except BadImageError as error:
            return ReadImage(path, error)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        waiting: collections.deque[concurrent.futures.Future[ReadImage]] = collections.deque()
        try:
            for path in files:
                waiting.append(pool.submit(read, path))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        real = {name: os.path.realpath(pathlib.Path(place, name)) for name in folders}
        folders[:] = [
            name for name in folders if not name.startswith(".") and real[name] not in seen
        ]
        seen.update(real[name] for name in folders)
        for name in files:
            if not name.startswith(".") and pathlib.Path(name).suffix.lower() in SUFFIXES:
                yield pathlib.Path(place, name)
