"""Files of weights: named arrays, read without running any code that is in them.

.safetensors   read and written
.npz           read; arrays under the names of a state dict
.pth .pt .bin  read with torch, which must be installed, by its loader of weights alone
"""

import pathlib
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from lrnet_jax.training.checkpoints import CheckpointError, first_line

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", ".npz", *TORCH_SUFFIXES)
# Under these keys a checkpoint of a training in torch keeps its state dict.
WRAPPERS = ("state_dict", "model_state_dict", "model")
PARALLEL = "module."  # what torch's DataParallel puts before every name

Arrays = dict[str, np.ndarray]


def read_arrays(path: pathlib.Path) -> tuple[Arrays, dict[str, str]]:
    """Reads a file of weights.

    Returns:
      The arrays by name, and the texts that a .safetensors has in its header, {} for others.

    Raises:
      CheckpointError: there is no such file, it cannot be read, or it is no file of weights.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights: {path} is not a file")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"weights must be in a file {', '.join(SUFFIXES)}; got {path.name}")
    texts: dict[str, str] = {}
    if path.suffix == ".safetensors":
        arrays, texts = _read_safetensors(path)
    elif path.suffix == ".npz":
        arrays = _read_npz(path)
    else:
        arrays = _read_torch(path)
    if arrays and all(name.startswith(PARALLEL) for name in arrays):
        arrays = {name.removeprefix(PARALLEL): array for name, array in arrays.items()}
    return arrays, texts


def write_safetensors(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]
) -> None:
    """Writes arrays and the texts of the header."""
    from safetensors.numpy import save_file

    # "format" is the library whose layout it is; readers for torch refuse a file without it.
    save_file(dict(arrays), path, metadata={"format": "pt", **texts})


def _read_safetensors(path: pathlib.Path) -> tuple[Arrays, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            names = file.keys()  # no mapping: a loop over the file itself fails
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def _read_npz(path: pathlib.Path) -> Arrays:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise ValueError("it holds a single array without a name")
        with found as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile and numpy raise many kinds
        raise CheckpointError(f"{path} cannot be read as npz: {first_line(error)}") from error


def _read_torch(path: pathlib.Path) -> Arrays:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{path.name} needs torch to be read; {sys.executable} -m pip install torch, or write "
            "a .safetensors where it is installed: "
            "safetensors.torch.save_file(model.state_dict(), FILE)"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle's protocol: the error says enough
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, from zipfile and pickle
        raise CheckpointError(
            f"{path} is no state dict that torch can read without running code in it: "
            f"{type(error).__name__}; save one with torch.save(model.state_dict(), FILE)"
        ) from error
    return _state_dict(path, found, torch.Tensor)


def _state_dict(path: pathlib.Path, found: Any, tensor: type) -> Arrays:
    """The arrays of what torch has loaded.

    Raises:
      CheckpointError: it is no state dict, and holds none.
    """
    if isinstance(found, dict):
        for key in WRAPPERS:
            if isinstance(found.get(key), dict):
                found = found[key]
                break
    if not isinstance(found, dict) or not found:
        kind = "an empty dict" if found == {} else f"a {type(found).__name__}"
        raise CheckpointError(
            f"{path} is no state dict: it holds {kind}; save one with "
            "torch.save(model.state_dict(), FILE)"
        )
    for name, value in found.items():
        if not isinstance(value, tensor):
            raise CheckpointError(
                f"{path} is no state dict: {name!r} is a {type(value).__name__} and no tensor; "
                "save one with torch.save(model.state_dict(), FILE)"
            )
    # numpy has no bfloat16
    return {
        name: (value.float() if value.is_floating_point() else value).numpy()
        for name, value in found.items()
    }
