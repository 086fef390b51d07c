"""From a checkpoint on disk to a network in memory."""

import dataclasses
import logging
import pathlib
from typing import Any, Literal

from flax import nnx

from lrnet_jax.functional import Functional, Tree, merge, split
from lrnet_jax.model_zoo import create_from_variant
from lrnet_jax.networks import Network
from lrnet_jax.training import checkpoints
from lrnet_jax.training.checkpoints import CheckpointError
from lrnet_jax.variant import Variant

DType = Literal["float32", "bfloat16"]


def load_checkpoint(
    path: str | pathlib.Path,
    num_classes: int | None = None,
    *,
    ema: bool | None = None,
    dtype: DType | None = None,
    rngs: nnx.Rngs | None = None,
) -> tuple[Network, dict[str, Any]]:
    """Builds the network of a checkpoint, with its weights, in evaluation mode.

        model, metadata = load_checkpoint("runs/lrnet50")
        model, _ = load_checkpoint("runs/lrnet50", num_classes=37)      # a fresh head

    Args:
      path: a workdir (its newest good checkpoint), one of its step directories, or an export.
      num_classes: None for that of the checkpoint. With another number the network gets a fresh
        head, and the head of the checkpoint is left out.
      ema: True for the averaged weights, False for those of the last step, None for the averages
        if the run kept them.
      dtype: of activations, None for that of the run. Weights are always float32, as stored.
      rngs: the source of a fresh head's initial weights, Rngs(0) by default.

    Returns:
      The network on the first local device, and the metadata of the checkpoint: network, variant,
      num_classes, class_names (None with another num_classes), step, config, and what was done to
      the images: mean and std (0 to 255), image_size, resize. `load_classifier` does all of that.
      "skipped" lists what of the checkpoint was left out. "ema" is whether the weights are
      averages. "damaged" has a message for each newer checkpoint that was passed over.

    Raises:
      CheckpointError: there is no checkpoint, it is damaged or was not written by lrnet_jax, it
        holds another network than its metadata describe, or it has no averages.
    """
    folder, metadata, damaged = checkpoints.find(path)
    for message in damaged:
        logging.warning("%s; an older one is loaded", message)
    variant, stored_classes = _parse(folder, metadata, dtype)
    ema = checkpoints.has_ema(folder) if ema is None else ema
    functional, stored = _read(folder, variant, stored_classes, ema)
    params, skipped = stored["params"], []
    if num_classes is not None and num_classes != stored_classes:
        skipped = [f"params/head/{name}" for name in sorted(params["head"])]
        fresh = create_from_variant(variant, num_classes, rngs or nnx.Rngs(0))
        functional, fresh_params, _ = split(fresh)
        params = {**params, "head": fresh_params["head"]}
        metadata = {**metadata, "num_classes": num_classes, "class_names": None}
    model = merge(functional.evaluate, params, stored["batch_stats"])
    return model, {**metadata, "damaged": list(damaged), "ema": ema, "skipped": skipped}


def _parse(
    folder: pathlib.Path, metadata: dict[str, Any], dtype: DType | None
) -> tuple[Variant, int]:
    """The variant that metadata describe, and its number of classes."""
    try:
        variant = Variant(**metadata["variant"])
        if dtype is not None:
            variant = dataclasses.replace(variant, dtype=dtype)
        return variant, int(metadata["num_classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {folder} describes a network that this version cannot build: {error}"
        ) from error


def _read(
    folder: pathlib.Path, variant: Variant, num_classes: int, ema: bool
) -> tuple[Functional, Tree]:
    """The network as functions, and its stored arrays {"params": ..., "batch_stats": ...}."""
    abstract = nnx.eval_shape(lambda: create_from_variant(variant, num_classes, nnx.Rngs(0)))
    functional, params, batch_stats = split(abstract)
    shapes = {"params": params, "batch_stats": batch_stats}
    item = checkpoints.EMA if ema else checkpoints.MODEL
    return functional, checkpoints.read_model(folder, shapes, item)
