"""A network that knows its images and its classes.

classifier = lrnet_jax.load_classifier("runs/quickstart")
for guess in classifier.predict("shoe.jpg"):
    print(f"{guess.probability:.1%} {guess.name}")
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from lrnet_jax.data.imagenet_names import readable
from lrnet_jax.loading import DType, load_checkpoint
from lrnet_jax.networks import Network
from lrnet_jax.preprocessing import Images, Preprocessing, as_list, class_names, is_one

BATCH_SIZE = 32


class Guess(NamedTuple):
    """A class that an image may be of.

    Attributes:
      name: of the class, or "class 3" where classes have no names.
      probability: softmax of the logits, in 0 to 1.
      label: number of the class, from 0.
    """

    name: str
    probability: float
    label: int


class Predictor:
    """What classifiers share, whatever computes their logits. A child has `_logits`.

    Attributes:
      preprocessing: what is done to the images.
      class_names: one for each class, synsets of ImageNet in words; or None.
    """

    def __init__(self, preprocessing: Preprocessing, class_names: Sequence[str] | None) -> None:
        self.preprocessing = preprocessing
        self.class_names = None if class_names is None else readable(class_names)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Computes logits of images as `preprocessing.pixels` makes them.

        Images are added up to the next power of two, so that few sizes are compiled.

        Args:
          pixels: (N, image_size, image_size, 3) uint8.

        Returns:
          (N, num_classes) float32.
        """
        count = len(pixels)
        size = 1 << (count - 1).bit_length()
        if count < size:
            pixels = np.concatenate([pixels, np.zeros((size - count, *pixels.shape[1:]), np.uint8)])
        return self._logits(pixels)[:count]

    def _logits(self, pixels: np.ndarray) -> np.ndarray:
        """(N, S, S, 3) uint8 -> (N, num_classes) float32."""
        raise NotImplementedError

    def probabilities(self, images: Images, *, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """The softmax of the logits.

        Args:
          images: as in `predict`.
          batch_size: images that are read and computed together.

        Returns:
          (N, num_classes) float32, also for one image.

        Raises:
          BadImageError, TypeError, ValueError: as in `predict`.
        """
        listed = as_list(images)
        parts = [
            softmax(self.logits(self.preprocessing.pixels(listed[first : first + batch_size])))
            for first in range(0, max(1, len(listed)), batch_size)
        ]
        return np.concatenate(parts)

    def predict(self, images: Images, top: int = 5) -> list[Guess] | list[list[Guess]]:
        """The most probable classes.

        Args:
          images: files, images of Pillow, or uint8 arrays (H, W, 3) in levels of 0 to 255; one, or
            a list of them, or an array (N, H, W, 3). Any size will do.
          top: number of classes.

        Returns:
          For one image the guesses, the most probable first. For several a list of these.

        Raises:
          BadImageError: a file cannot be read.
          TypeError: an array is not uint8, or something is no image.
          ValueError: an array has another shape, there is no image, or top is less than 1.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        rows = [self.guesses(row, top) for row in self.probabilities(images)]
        return rows[0] if is_one(images) else rows

    def guesses(self, probabilities: np.ndarray, top: int = 5) -> list[Guess]:
        """The `top` most probable classes of one row (num_classes,) of `probabilities`."""
        best = np.argsort(-probabilities, kind="stable")[:top]
        return [Guess(self.name(int(i)), float(probabilities[i]), int(i)) for i in best]

    def name(self, label: int) -> str:
        """The name of a class."""
        return f"class {label}" if self.class_names is None else self.class_names[label]


class Classifier(Predictor):
    """A network with its preprocessing and class names; `load_classifier` reads one.

    Attributes:
      model: the network, in evaluation mode. It takes what `preprocess` returns.
      preprocessing: what is done to the images.
      class_names: one for each class, or None.
      metadata: of its checkpoint, {} without one.

    Raises:
      ValueError: there are not as many names as classes.
    """

    def __init__(
        self,
        model: Network,
        preprocessing: Preprocessing,
        class_names: Sequence[str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        if class_names is not None and len(class_names) != model.num_classes:
            raise ValueError(
                f"class_names must have {model.num_classes} names, one for each class, "
                f"got {len(class_names)}"
            )
        super().__init__(preprocessing, class_names)
        model.eval()
        self.model = model
        self.metadata = metadata or {}

    def preprocess(self, images: Images) -> jax.Array:
        """Reads, resizes, crops and normalises images, so that `model` can take them.

        Args:
          images: as in `predict`.

        Returns:
          (N, image_size, image_size, 3) in the dtype of the network, also for one image.

        Raises:
          BadImageError, TypeError, ValueError: as in `predict`.
        """
        pixels = self.preprocessing.pixels(images)
        return self.preprocessing.normalize(pixels, self.model.variant.dtype)

    def _logits(self, pixels: np.ndarray) -> np.ndarray:
        self.model.eval()  # whatever was done with it since
        images = self.preprocessing.normalize(pixels, self.model.variant.dtype)
        return np.asarray(_apply(self.model, images))

    def __repr__(self) -> str:
        """Network, classes and size."""
        return (
            f"Classifier({self.metadata.get('network', 'Network')}, "
            f"{self.model.num_classes} classes, {self.preprocessing.image_size} pixels)"
        )


def load_classifier(
    path: str | pathlib.Path, *, ema: bool | None = None, dtype: DType | None = None
) -> Classifier:
    """Loads a network that knows its preprocessing and its class names.

    Args:
      path: a workdir (its newest good checkpoint), one of its step directories, or an export.
      ema: which weights, see `load_checkpoint`.
      dtype: of activations, None for that of the run.

    Raises:
      CheckpointError: see `load_checkpoint`.
    """
    model, metadata = load_checkpoint(path, ema=ema, dtype=dtype)
    return Classifier(model, Preprocessing.from_metadata(metadata), class_names(metadata), metadata)


@nnx.jit
def _apply(model: Network, images: jax.Array) -> jax.Array:
    return model(images)


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, num_classes) -> the same, rows summing to 1."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)
