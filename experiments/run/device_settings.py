"""How a command uses the devices: programs that are kept, and the memory of a GPU."""

import hashlib
import os
import pathlib
import platform
from typing import Any

import jax

from experiments.config import ConfigError

GIB = 2**30
MAX_CACHE = 4 * GIB
OFF = "none"


def default_cache() -> pathlib.Path:
    """The folder of compiled programs: in the user's cache, one for each kind of processor.

    XLA compiles for the instructions of a processor, and machines of a cluster share a home.
    """
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root, "lrnet_jax", "compiled", _processor())


def keep_programs(folder: str | None = None) -> None:
    """Makes JAX keep compiled programs on disk, so that the next start loads them.

    $JAX_COMPILATION_CACHE_DIR, where it is set, is left as it is.

    Args:
      folder: None for `default_cache`, "none" for no cache.

    Raises:
      ConfigError: the folder cannot be written.
    """
    if folder is None and option("jax_compilation_cache_dir") is not None:
        return
    if folder == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    path = default_cache() if folder is None else pathlib.Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--compilation_cache: {path} cannot be made ({error.strerror}); give another folder, "
            f"or --compilation_cache={OFF}"
        ) from error
    if not os.access(path, os.W_OK):
        raise ConfigError(
            f"--compilation_cache: {path} is not writable; give another folder, or "
            f"--compilation_cache={OFF}"
        )
    shrink(path, MAX_CACHE)
    jax.config.update("jax_compilation_cache_dir", str(path))


def option(name: str) -> Any:
    """The value of an option of JAX; types do not know all of its attributes."""
    return getattr(jax.config, name)


def shrink(folder: pathlib.Path, most: int) -> None:
    """Deletes the programs that were used longest ago, until the rest fits.

    JAX has a bound of its own, which takes a lock between processes for every program.

    Args:
      folder: of the cache.
      most: bytes that may remain.
    """
    files = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
    files.sort(key=lambda item: max(item[1].st_atime, item[1].st_mtime))
    size = sum(status.st_size for _, status in files)
    for path, status in files:
        if size <= most:
            return
        path.unlink(missing_ok=True)  # another process may have been faster
        size -= status.st_size


def share_gpu() -> None:
    """Takes memory of a GPU only as it is needed, as long as no device was used yet.

    JAX takes three quarters of each GPU at its start, and a second program then finds too little.
    Training does so, because memory in one piece is not cut into parts. What runs beside a training
    does not. XLA_PYTHON_CLIENT_PREALLOCATE, where it is set, is left as it is.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def _processor() -> str:
    """Names the instructions of this processor, such as x86_64-1f2e3d4c."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    digest = hashlib.sha256((features or platform.processor()).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"
