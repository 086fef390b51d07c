"""Weights from elsewhere as a checkpoint: how their images are prepared, and what is written."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import lrnet_jax
from experiments import config as configs
from experiments.config import Config, Data
from experiments.run.new_folder import new_folder
from lrnet_jax.data.decode import shorter_side
from lrnet_jax.data.on_disk import IMAGE_SIZE, MEAN, STD
from lrnet_jax.functional import Tree
from lrnet_jax.preprocessing import Preprocessing
from lrnet_jax.training.checkpoint_saver import write_model
from lrnet_jax.training.checkpoints import CheckpointError

HEADER = "lrnet_jax"  # key of the header of a .safetensors that an export wrote
TIMM = "config.json"  # beside the weights, as timm publishes them
RECIPE = "imported"


class Given(NamedTuple):
    """What is known of weights besides their arrays.

    Attributes:
      preprocessing: of the images.
      class_names: one for each class, or None.
      source: where both are from, for messages.
    """

    preprocessing: Preprocessing = Preprocessing(IMAGE_SIZE, shorter_side(IMAGE_SIZE), MEAN, STD)
    class_names: tuple[str, ...] | None = None
    source: str = "ImageNet's usual preparation"


def read_header(path: pathlib.Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """What an export of lrnet_jax says about itself in the header; {} for other files.

    Raises:
      CheckpointError: it cannot be read.
    """
    if HEADER not in texts:
        return {}
    try:
        header = json.loads(texts[HEADER])
        lacking = {"network", "variant", "image_size", "mean", "std"} - set(header)
        if lacking:
            raise ValueError(f"it has no {', '.join(sorted(lacking))}")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the header of {path} cannot be read: {error}") from error
    return header


def read_given(path: pathlib.Path, header: Mapping[str, Any]) -> Given:
    """How images are prepared, from the header of an export or from timm's config.json.

    Raises:
      CheckpointError: timm's file cannot be read.
    """
    if header:
        names = header.get("class_names")
        return Given(
            Preprocessing.from_metadata(header),
            None if names is None else tuple(names),
            "the header of the weights",
        )
    beside = path.with_name(TIMM)
    return _read_timm(beside) if beside.is_file() else Given()


def _read_timm(path: pathlib.Path) -> Given:
    try:
        record = json.loads(path.read_text())
        found = record.get("pretrained_cfg", record)
        side = int(found["input_size"][-1])
        red, green, blue = (255 * value for value in found["mean"])
        deviations = [255 * value for value in found["std"]]
        names = record.get("label_names") or found.get("label_names")
        return Given(
            Preprocessing(
                side,
                int(side / found["crop_pct"]),  # timm rounds down
                (red, green, blue),
                (deviations[0], deviations[1], deviations[2]),
            ),
            None if names is None else tuple(names),
            str(path) + _other_resizing(found.get("interpolation", "bicubic")),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} beside the weights is no configuration of timm ({type(error).__name__}: "
            f"{error}); move the weights to another folder"
        ) from error


def _other_resizing(interpolation: str) -> str:
    """A warning where timm resizes in another way."""
    if interpolation == "bicubic":
        return ""
    return f" (timm resizes {interpolation}, and images are resized bicubic here)"


def record_of(
    network: str,
    variant: lrnet_jax.Variant,
    num_classes: int,
    given: Given,
    header: Mapping[str, Any],
    file_name: str,
) -> dict[str, Any]:
    """The metadata of the checkpoint, see `lrnet_jax.load_checkpoint`."""
    size = given.preprocessing.image_size
    config = Config(recipe=RECIPE, network=network, model=variant, data=Data(image_size=size))
    return {
        "network": network,
        "variant": json.loads(json.dumps(dataclasses.asdict(variant))),
        "num_classes": num_classes,
        "class_names": given.class_names,
        **dataclasses.asdict(given.preprocessing),
        "step": header.get("step", 0),
        "config": header.get("config") or configs.to_dict(config),
        "scores": header.get("scores"),
        "imported_from": file_name,
        "versions": {"lrnet_jax": lrnet_jax.__version__, "jax": jax.__version__},
    }


def write(out: pathlib.Path, tree: Tree, record: Mapping[str, Any]) -> None:
    """Writes a checkpoint for inference.

    Args:
      out: a folder that does not exist yet; it appears when it is complete.
      tree: {"params": ..., "batch_stats": ...}.
      record: its metadata.
    """
    with new_folder(out) as part:
        write_model(part, tree, dict(record))


def describe(network: str, arrays: Mapping[str, np.ndarray], tree: Tree, given: Given) -> list[str]:
    """Lines that report what was used, what was left out and how images are prepared."""
    used, params = jax.tree.leaves(tree), jax.tree.leaves(tree["params"])
    left = len(arrays) - len(used)
    note = f"; {left} counters of torch (num_batches_tracked) are left out" if left else ""
    preprocessing = given.preprocessing
    mean, std = (
        ", ".join(f"{value:.4g}" for value in values)
        for values in (preprocessing.mean, preprocessing.std)
    )
    side = preprocessing.image_size
    return [
        f"{network}: {len(used)} arrays used once each, "
        f"{sum(leaf.size for leaf in params) / 1e6:.3f} M parameters{note}",
        f"images: {side} x {side} out of {preprocessing.resize}, mean {mean}, std {std}, "
        f"from {given.source}",
    ]
