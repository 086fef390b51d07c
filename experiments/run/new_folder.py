"""The folder that a command writes: it must not exist yet, and appears when it is complete."""

import contextlib
import errno
import pathlib
from collections.abc import Iterator

from experiments.config import ConfigError
from experiments.run.workdir import DISK_ERRORS
from lrnet_jax.training import atomic


def check_new(path: str | pathlib.Path, flag: str) -> pathlib.Path:
    """The folder that a flag names, before any work is done for it.

    Raises:
      ConfigError: it exists.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise ConfigError(f"{path} exists; give another --{flag}")
    return path


@contextlib.contextmanager
def new_folder(path: pathlib.Path, flag: str = "out") -> Iterator[pathlib.Path]:
    """As `lrnet_jax.training.atomic.new_folder`, with the folders above it.

    Args:
      path: a folder that does not exist yet.
      flag: the one that names it.

    Raises:
      ConfigError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.new_folder(path) as part:
            yield part
    except OSError as error:
        # /proc and the like answer that there is no such file.
        if error.errno not in {*DISK_ERRORS, errno.ENOENT}:
            raise
        raise ConfigError(
            f"cannot write --{flag}={path}: {error.strerror}; give another --{flag}"
        ) from error
