"""Weights from elsewhere as a checkpoint: how their images are prepared, and what is written."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import lrnet_jax
from experiments import config as configs
from experiments.config import Config, Data
from lrnet_jax.data.on_disk import IMAGE_SIZE, MEAN, STD
from lrnet_jax.functional import Tree
from lrnet_jax.training.checkpoint_saver import write_model
from lrnet_jax.training.checkpoints import CheckpointError

HEADER = "lrnet_jax"  # key of the header of a .safetensors that an export wrote
TIMM = "config.json"  # beside the weights, as timm publishes them
RECIPE = "imported"


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How images become the input of the network, and what its classes are.

    Attributes:
      image_size: side of the images, in pixels.
      resize: shorter side before the central crop; None for image_size * 256 / 224.
      mean: of R, G and B, in levels of 0 to 255.
      std: of R, G and B, in levels of 0 to 255.
      class_names: one for each class, or None.
      source: where this is from, for messages.
    """

    image_size: int = IMAGE_SIZE
    resize: int | None = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    class_names: tuple[str, ...] | None = None
    source: str = "ImageNet's usual preparation"

    @property
    def shorter_side(self) -> int:
        """`resize`, or its default."""
        return round(self.image_size * 256 / 224) if self.resize is None else self.resize

    def describe(self) -> str:
        """In a line."""
        mean, std = (
            ", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std)
        )
        side = self.image_size
        return f"{side} x {side} out of {self.shorter_side}, mean {mean}, std {std}"


def read_header(path: pathlib.Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """What an export of lrnet_jax says about itself in the header; {} for other files.

    Raises:
      CheckpointError: it cannot be read.
    """
    if HEADER not in texts:
        return {}
    try:
        header = json.loads(texts[HEADER])
        if not {"network", "variant", "num_classes"} <= set(header):
            raise ValueError("no network, variant or num_classes")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the header of {path} cannot be read: {error}") from error
    return header


def read_preparation(path: pathlib.Path, header: Mapping[str, Any]) -> Preparation:
    """How images are prepared, from the header of an export or from timm's config.json.

    Raises:
      CheckpointError: timm's file cannot be read.
    """
    if header:
        names = header.get("class_names")
        return Preparation(
            image_size=header["image_size"],
            resize=header.get("resize"),
            mean=tuple(header["mean"]),
            std=tuple(header["std"]),
            class_names=None if names is None else tuple(names),
            source="the header of the weights",
        )
    beside = path.with_name(TIMM)
    return _read_timm(beside) if beside.is_file() else Preparation()


def _read_timm(path: pathlib.Path) -> Preparation:
    try:
        record = json.loads(path.read_text())
        found = record.get("pretrained_cfg", record)
        side = found["input_size"][-1]
        names = found.get("label_names")
        return Preparation(
            image_size=side,
            resize=int(side / found["crop_pct"]),  # timm rounds down
            mean=tuple(255 * value for value in found["mean"]),
            std=tuple(255 * value for value in found["std"]),
            class_names=None if names is None else tuple(names),
            source=str(path),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} beside the weights is no configuration of timm ({type(error).__name__}: "
            f"{error}); move the weights to another folder"
        ) from error


def write(
    out: pathlib.Path,
    network: str,
    variant: lrnet_jax.Variant,
    tree: Tree,
    num_classes: int,
    preparation: Preparation,
    header: Mapping[str, Any],
    file_name: str,
) -> None:
    """Writes a checkpoint for inference.

    Args:
      out: a folder that does not exist yet; it appears when it is complete.
      network: of the zoo.
      variant: what is built.
      tree: {"params": ..., "batch_stats": ...}.
      num_classes: of the head.
      preparation: of the images.
      header: of an export, or {}.
      file_name: of the weights.
    """
    config = Config(
        recipe=RECIPE,
        network=network,
        model=variant,
        data=Data(image_size=preparation.image_size),
    )
    record = header.get("config") or configs.to_dict(config)
    metadata = {
        "network": network,
        "variant": json.loads(json.dumps(dataclasses.asdict(variant))),
        "num_classes": num_classes,
        "class_names": preparation.class_names,
        "mean": preparation.mean,
        "std": preparation.std,
        "image_size": preparation.image_size,
        "resize": preparation.shorter_side,
        "step": header.get("step", 0),
        "config": record,
        "imported_from": file_name,
        "versions": {"lrnet_jax": lrnet_jax.__version__, "jax": jax.__version__},
    }
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_model(part, tree, metadata)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def describe(
    out: pathlib.Path,
    network: str,
    arrays: Mapping[str, np.ndarray],
    tree: Tree,
    num_classes: int,
) -> list[str]:
    """Lines that report what was used and what was left out."""
    leaves = jax.tree.leaves(tree)
    left = len(arrays) - len(leaves)
    params = sum(leaf.size for leaf in jax.tree.leaves(tree["params"]))
    note = f"; {left} counters of torch (num_batches_tracked) are left out" if left else ""
    return [
        f"{network}, {num_classes} classes: {len(leaves)} arrays used once each, "
        f"{params / 1e6:.3f} M parameters{note}",
        f"wrote {out}; next: python -m experiments.evaluate --run={out}",
    ]
