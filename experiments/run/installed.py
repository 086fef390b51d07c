"""The packages that a run depends on, and their versions on this machine."""

import importlib.metadata

LIBRARY = ("jax", "jaxlib", "flax", "numpy", "orbax-checkpoint")
TRAINING = ("optax", "grain", "tensorflow-datasets", "pillow", "tensorboardX")
PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-triton", "triton")


def version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """The versions of all packages above."""
    return {package: version(package) for package in (*LIBRARY, *TRAINING, *PLUGINS)}
