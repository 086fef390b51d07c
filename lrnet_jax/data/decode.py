"""From the bytes of one image to a crop, with Pillow: the recipes of training and evaluation."""

import io
import math
import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the full image

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
MEMORY_BLOCKS = 4  # the decoded image, a converted copy, the resampled rows, the crop
# What makes an image upright, by its EXIF orientation: names of `Image.Transpose`.
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
ORIENTATION = 0x0112  # tag of EXIF
EVAL_FRACTION = 224 / 256  # side of the central crop over the shorter side, resized


def decode(encoded: bytes) -> "Image.Image":
    """Decodes a JPEG, PNG or other image that Pillow knows, to RGB, upright; see `upright_rgb`."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        return upright_rgb(image)


def upright_rgb(image: "Image.Image") -> "Image.Image":
    """Turns an image by its EXIF orientation and converts it to RGB.

    Of an animation it is the first frame. Transparency is dropped, as torchvision and timm do. 16
    bits become 8.

    Raises:
      ValueError: its pixels have no known range.
    """
    from PIL import Image

    image.load()  # a PNG may have its EXIF block behind the pixels
    exif = image.info.get("exif")
    turn = TURNS.get(orientation(exif)) if isinstance(exif, bytes) else None
    turned = image if turn is None else image.transpose(Image.Transpose[turn])
    if turn is not None:
        del turned.info["exif"]  # or the next reader would turn it again
    # convert() copies even where there is nothing to convert, a seventh of the time of a crop.
    return turned if turned.mode == "RGB" else _to_rgb(turned)


def _to_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts off all above 255.
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; save it with 8 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns without this step
    return image.convert("RGB")


def orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, 1 to 8; 1 where there is none.

    A block that is damaged has none: Pillow's reader would warn or raise, and the image is whole.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        if order is None:
            return 1
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for number in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * number)
            if tag == ORIENTATION:
                return value
    except struct.error:
        pass  # it ends before the tag
    return 1


def keep_memory() -> None:
    """Lets Pillow keep the memory of an image for the next one, for this process.

    By default it goes back to the operating system each time, and comes back as zeroed pages:
    a quarter of the CPU time of a crop. At most MEMORY_BLOCKS * 16 MB stay.
    """
    from PIL import Image

    Image.core.set_blocks_max(MEMORY_BLOCKS)


def crop(image: "Image.Image", box: Box, image_size: int) -> np.ndarray:
    """Cuts `box` out and resizes it to (image_size, image_size, 3) uint8, bicubic.

    One resampling from the full image; the filter widens when it reduces (antialiasing).
    """
    from PIL import Image

    size = (image_size, image_size)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))


def random_resized_box(width: int, height: int, random: np.random.Generator) -> Box:
    """A random box of 8 to 100 % of the area and a ratio of 3/4 to 4/3, as in Inception.

    Area is uniform, ratio uniform in its logarithm, place uniform. After ten boxes that do not fit
    the image, the largest central box whose ratio is allowed.

    Source: paper, section 5 (augmentation as in its reference [42]); Szegedy et al., "Going deeper
    with convolutions", section 6.
    """
    for _ in range(TRIES):
        area = width * height * random.uniform(*AREA)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(random.integers(0, width - box_width + 1))
            top = int(random.integers(0, height - box_height + 1))
            return left, top, left + box_width, top + box_height
    box_width = min(width, round(height * RATIO[1]))
    box_height = min(height, round(width / RATIO[0]))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def shorter_side(image_size: int) -> int:
    """The shorter side of an image before its central crop: S * 256 / 224."""
    return round(image_size / EVAL_FRACTION)


def central_crop(image: "Image.Image", image_size: int, resize: int | None = None) -> np.ndarray:
    """The shorter side to `resize`, bicubic, and the central (S, S, 3) of it.

    By default, `resize` is S * 256 / 224.

    Whole pixels are rounded as torchvision's Resize(256) and CenterCrop(224) do: the longer side
    down, and the crop may lie half a pixel off the centre. Figures in the literature are taken so.
    (`crop` of the same box is not quite the same: Pillow then takes rows and columns in another
    order for some images, and rounds in between.)

    Source: paper, section 5 (single centre crop).
    """
    from PIL import Image

    short = shorter_side(image_size) if resize is None else resize
    width, height = (int(short * side / min(image.size)) for side in image.size)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + image_size, top + image_size)))
