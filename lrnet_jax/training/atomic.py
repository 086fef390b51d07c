"""Writes files so that a reader sees the old file or the new one, never a part."""

import os
import pathlib


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
