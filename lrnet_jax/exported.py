"""An exported network: what `experiments.export` wrote, run by `jax.export` without building it.

classifier = lrnet_jax.load_exported("exports/lrnet50")
guesses = classifier.predict("cat.jpg")
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from lrnet_jax.classifier import Predictor
from lrnet_jax.preprocessing import Preprocessing
from lrnet_jax.training.checkpoints import CheckpointError, first_line

ABOUT = "classifier.json"  # preprocessing, class names, and what is known of the network
MODULE = "network.stablehlo"  # any batch size, CPU and CUDA, no custom calls
CUDA_MODULE = "network_cuda.stablehlo"  # one batch size, with the fused kernels


class Exported(Predictor):
    """An exported network with its preprocessing and class names; `load_exported` reads one.

    Attributes:
      preprocessing: what is done to the images.
      class_names: one for each class.
      about: what `classifier.json` has.
      module: the network as `jax.export` knows it.
    """

    def __init__(self, about: dict[str, Any], module: jax_export.Exported) -> None:
        super().__init__(Preprocessing.from_metadata(about), about["class_names"])
        self.about = about
        self.module = module
        (size, *_) = module.in_avals[0].shape
        self._batch_size = size if isinstance(size, int) else None

    def _logits(self, pixels: np.ndarray) -> np.ndarray:
        if self._batch_size is None:
            return np.asarray(self.module.call(pixels))
        count, size = len(pixels), self._batch_size
        filled = np.concatenate([pixels, np.zeros((-count % size, *pixels.shape[1:]), np.uint8)])
        parts = [self.module.call(filled[i : i + size]) for i in range(0, len(filled), size)]
        return np.concatenate([np.asarray(part) for part in parts])[:count]

    def __repr__(self) -> str:
        """Network, classes and size."""
        return (
            f"Exported({self.about['network']}, {len(self.about['class_names'])} classes, "
            f"{self.preprocessing.image_size} pixels)"
        )


def load_exported(path: str | pathlib.Path) -> Exported:
    """Loads an exported network.

    On a GPU it takes the module with the fused kernels, if there is one and this JAX wrote it.

    Args:
      path: the folder that `experiments.export` wrote.

    Raises:
      CheckpointError: it is no export, or this JAX cannot read it.
    """
    folder = pathlib.Path(path)
    try:
        about = json.loads((folder / ABOUT).read_text())
        cuda = about.get("cuda")
        kernels = (
            cuda is not None and cuda["jax"] == jax.__version__ and jax.default_backend() == "gpu"
        )
        module = read_module(folder / (CUDA_MODULE if kernels else MODULE))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is no export: it has no {pathlib.Path(error.filename).name}; "
            "write one by python -m experiments.export --run=RUN --out=FOLDER"
        ) from error
    except Exception as error:  # json and the readers of jax.export raise many kinds
        raise CheckpointError(
            f"export {folder} cannot be read by JAX {jax.__version__}: {first_line(error)}"
        ) from error
    return Exported(about, module)


def read_module(path: pathlib.Path) -> jax_export.Exported:
    """Reads a file that `jax.export` wrote."""
    return jax_export.deserialize(bytearray(path.read_bytes()))
