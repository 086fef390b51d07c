"""The contract of images: what is done to one before a network sees it.

Files, images of Pillow and uint8 arrays become `pixels`, (N, S, S, 3) uint8, on the host.
`normalize` makes them what `Network.__call__` takes.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from lrnet_jax.data import BadImageError, augment
from lrnet_jax.data.decode import central_crop, shorter_side, upright_rgb
from lrnet_jax.data.in_memory import FASHION_CLASSES

if TYPE_CHECKING:
    from PIL import Image

Channels = tuple[float, float, float]
OneImage: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | jax.Array"
Images: TypeAlias = "OneImage | Sequence[OneImage]"

# Names for checkpoints that have none. A data set that is not here has the names of its files.
KNOWN_CLASSES: Mapping[str, tuple[str, ...]] = {"fashion_mnist_subset": FASHION_CLASSES}
# Data sets whose images are not cropped, for checkpoints that do not say.
UNCROPPED = ("fashion_mnist_subset",)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network.

    EXIF orientation is applied and the image converted to RGB. Its shorter side is resized to
    `resize` (bicubic, antialiased), and the central square of `image_size` is cut out. Channels
    come last. (levels of 0 to 255 - mean) / std is then what the network takes.

    Attributes:
      image_size: side of the square, in pixels.
      resize: shorter side before the crop, in pixels, at least image_size.
      mean: of R, G and B, in levels of 0 to 255.
      std: of R, G and B, in levels of 0 to 255.
    """

    image_size: int
    resize: int
    mean: Channels
    std: Channels

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "Preprocessing":
        """That of a checkpoint (see `load_checkpoint`).

        Older metadata have no "resize". The shorter side is then image_size * 256 / 224, or
        image_size if the data set is the embedded one, whose images are not cropped.
        """
        size = int(metadata["image_size"])
        before = size if _data_name(metadata) in UNCROPPED else shorter_side(size)
        resize = int(metadata.get("resize", before))
        return cls(size, resize, _channels(metadata["mean"]), _channels(metadata["std"]))

    def pixels(self, images: Images) -> np.ndarray:
        """Reads, resizes and crops images.

        Args:
          images: one or several files, images of Pillow or uint8 arrays (H, W), (H, W, 1) or
            (H, W, 3), or one uint8 array (N, H, W, 1 or 3).

        Returns:
          (N, image_size, image_size, 3) uint8, RGB.

        Raises:
          BadImageError: a file cannot be read.
          TypeError: an array is not uint8, or something is no image.
          ValueError: an array has another shape, or there is no image.
        """
        rows = [
            central_crop(open_image(image), self.image_size, self.resize)
            for image in as_list(images)
        ]
        if not rows:
            raise ValueError("images is empty; give at least one")
        return np.stack(rows)

    def normalize(self, pixels: ArrayLike, dtype: DTypeLike = "float32") -> jax.Array:
        """(N, S, S, 3) uint8 -> normalised, in `dtype`. Can be traced."""
        return augment.normalize(jnp.asarray(pixels), self.mean, self.std, dtype)


def is_one(images: Images) -> bool:
    """Whether this is one image, and not several."""
    if isinstance(images, np.ndarray | jax.Array):
        return images.ndim <= 3
    from PIL import Image

    return isinstance(images, str | os.PathLike | Image.Image)


def as_list(images: Images) -> list[OneImage]:
    """One or several images as a list.

    Raises:
      TypeError: this is something else.
      ValueError: this is an array with channels first.
    """
    if is_one(images):
        return [cast("OneImage", images)]
    if isinstance(images, np.ndarray | jax.Array):
        if images.shape[1] == 3 and images.shape[-1] not in (1, 3):
            raise ValueError(
                f"images must be (N, H, W, 3), got {images.shape}, which has the channels first; "
                "use images.transpose(0, 2, 3, 1)"
            )
        return list(np.asarray(images))
    if not isinstance(images, Iterable):
        raise TypeError(
            f"images must be files, images of Pillow or uint8 arrays, got {type(images).__name__}"
        )
    return list(images)


def open_image(image: OneImage) -> "Image.Image":
    """One image in RGB, upright.

    Raises:
      BadImageError: a file cannot be read.
      TypeError: it is no image, or an array that is not uint8.
      ValueError: an array has another shape.
    """
    from PIL import Image

    if isinstance(image, str | os.PathLike):
        return _read(pathlib.Path(image))
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if isinstance(image, np.ndarray | jax.Array):
        return Image.fromarray(_checked(np.asarray(image))).convert("RGB")
    raise TypeError(
        f"an image must be a file, an image of Pillow or a uint8 array, got {type(image).__name__}"
    )


def class_names(metadata: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes of a checkpoint.

    Those in its metadata come first, then those known of its data set. They count only if there
    are as many as the network has classes. None if there are none.
    """
    for names in (metadata.get("class_names"), KNOWN_CLASSES.get(_data_name(metadata))):
        if names is not None and len(names) == metadata["num_classes"]:
            return tuple(names)
    return None


def _read(path: pathlib.Path) -> "Image.Image":
    from PIL import Image

    try:
        with Image.open(path) as image:
            return upright_rgb(image)
    except FileNotFoundError as error:
        raise BadImageError(f"image {path} cannot be read: there is no such file") from error
    except Exception as error:  # Pillow's plugins raise anything from OSError to SyntaxError
        raise BadImageError(f"image {path} cannot be read: {error}") from error


def _checked(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8:
        raise TypeError(
            f"an array of an image must be uint8, levels of 0 to 255, got {array.dtype}; of values "
            "in 0 to 1 use (255 * array).round().astype('uint8')"
        )
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[-1] != 3:
        raise ValueError(
            f"an image must be (H, W, 3), got {array.shape}, which has the channels first; "
            "use image.transpose(1, 2, 0)"
        )
    if array.ndim == 2:
        return array
    if array.ndim == 3 and array.shape[-1] in (1, 3):
        return array[..., 0] if array.shape[-1] == 1 else array
    raise ValueError(f"an image must be (H, W), (H, W, 1) or (H, W, 3), got {array.shape}")


def _data_name(metadata: Mapping[str, Any]) -> str:
    return metadata.get("config", {}).get("data", {}).get("name", "")


def _channels(values: Sequence[float]) -> Channels:
    red, green, blue = map(float, values)
    return red, green, blue
