"""From a checkpoint on disk to a network in memory."""

import dataclasses
import logging
import pathlib
from typing import Any, Literal

from flax import nnx

from lrnet_jax.functional import merge, split
from lrnet_jax.model_zoo import create_from_variant
from lrnet_jax.networks import Network
from lrnet_jax.training import checkpoints
from lrnet_jax.training.checkpoints import CheckpointError
from lrnet_jax.variant import Variant

HEAD = "params/head/"


def load_checkpoint(
    path: str | pathlib.Path,
    num_classes: int | None = None,
    *,
    ema: bool | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    rngs: nnx.Rngs | None = None,
) -> tuple[Network, dict[str, Any]]:
    """Builds the network of a checkpoint, with its weights, in evaluation mode.

        model, metadata = load_checkpoint("runs/lrnet50")
        model, _ = load_checkpoint("runs/lrnet50", num_classes=37)      # a fresh head

    Args:
      path: a workdir (its newest good checkpoint), one step directory of it, or an export.
      num_classes: None for the checkpoint's own. Another number gives a fresh head; the
        checkpoint's is left out.
      ema: True for the averaged weights, False for those of the last step; None for the averages
        where the run kept them.
      dtype: of activations, None for the run's own. Weights are float32 always, as stored.
      rngs: of the fresh head; Rngs(0) by default.

    Returns:
      The network on the first local device, and the checkpoint's metadata: network, variant,
      num_classes, class_names, mean and std of the images (0 to 255), image_size, step, config.
      "skipped" lists what of the checkpoint was left out, "ema" says whether these are averages,
      "damaged" has a message for each newer checkpoint of the workdir that was passed over.

    Raises:
      CheckpointError: there is none, it is damaged, it is not one of ours, or it has no averages.
    """
    folder, metadata, damaged = checkpoints.find(path)
    for message in damaged:
        logging.warning("%s; an older one is loaded", message)
    metadata = {**metadata, "damaged": list(damaged)}
    try:
        variant = Variant(**metadata["variant"])
        if dtype is not None:
            variant = dataclasses.replace(variant, dtype=dtype)
        stored_classes = int(metadata["num_classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {folder} describes a network that this version cannot build: {error}"
        ) from error

    abstract = nnx.eval_shape(lambda: create_from_variant(variant, stored_classes, nnx.Rngs(0)))
    functional, params, batch_stats = split(abstract)
    like = {"params": params, "batch_stats": batch_stats}
    ema = checkpoints.has_ema(folder) if ema is None else ema
    stored = checkpoints.read_model(folder, like, checkpoints.EMA if ema else checkpoints.MODEL)
    metadata = {**metadata, "ema": ema}
    if num_classes is None or num_classes == stored_classes:
        model = merge(functional.evaluate, stored["params"], stored["batch_stats"])
        return model, {**metadata, "skipped": []}

    model = create_from_variant(variant, num_classes, rngs or nnx.Rngs(0))
    functional, params, _ = split(model)
    skipped = [name for name in checkpoints.flatten(stored) if name.startswith(HEAD)]
    params = {**stored["params"], "head": params["head"]}
    model = merge(functional.evaluate, params, stored["batch_stats"])
    return model, {**metadata, "num_classes": num_classes, "skipped": skipped}
