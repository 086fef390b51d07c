"""Writes files and folders so that a reader never sees a part of one."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


def write_atomically(path: pathlib.Path, data: str | bytes) -> None:
    """Writes a file beside its place, flushes it to the disk, and moves it there.

    Raises:
      OSError: it cannot be written; the old file, if there was one, is untouched.
    """
    spare = spare_name(path)
    try:
        with spare.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        spare.replace(path)
    except OSError:
        spare.unlink(missing_ok=True)
        raise


def spare_name(path: pathlib.Path) -> pathlib.Path:
    """Where a file is written before it takes its place; a killed process may leave it there."""
    return path.with_name(f"{path.name}.tmp")


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A context that writes a folder, which appears under its name once it is complete.

    Args:
      path: a folder that does not exist yet.

    Yields:
      Where its files are written. The caller makes that folder. It is removed after an error.
    """
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield part
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
