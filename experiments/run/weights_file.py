"""A trained network as a file of weights that other libraries read.

model.safetensors   the arrays: of a ResNet under the names of torchvision and timm, of other
                    networks under our own; the header describes the network
config.json         of a ResNet, for timm: create_model("local-dir:DIR", pretrained=True)
README.md           the model card
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lrnet_jax
from experiments.config import ConfigError
from experiments.report import model_card
from experiments.run.export_request import ExportRequest
from experiments.run.imported import HEADER, TIMM
from experiments.run.new_folder import new_folder
from lrnet_jax.foreign.convert import to_arrays, to_tree
from lrnet_jax.foreign.files import read_arrays, write_safetensors
from lrnet_jax.foreign.names import layout_of, tensors
from lrnet_jax.functional import merge, split

WEIGHTS = "model.safetensors"
TORCHVISION = ("resnet18", "resnet50", "resnet101")
TIMM_NETWORKS = (*TORCHVISION, "resnet26")


def export_weights(request: ExportRequest) -> list[str]:
    """Writes a network's weights, and reads them back.

    Returns:
      Lines that report what was written and how well it agrees with the network.

    Raises:
      CheckpointError: the checkpoint cannot be read.
      ConfigError: the folder cannot be written, or what was written computes other logits than the
        network.
    """
    model, metadata, record = request.load()
    with new_folder(request.out) as part:
        part.mkdir()
        arrays = to_arrays(model)
        write_safetensors(part / WEIGHTS, arrays, {HEADER: json.dumps(record)})
        difference = compare(part / WEIGHTS, model, record["image_size"])
        if is_in_timm(record["network"], model.variant, model.num_classes):
            (part / TIMM).write_text(json.dumps(timm_config(model, record), indent=2) + "\n")
        request.write_card(part, record, usage(record, model.variant))
    layout = "torchvision and timm" if layout_of(model.variant) == "torch" else "lrnet_jax"
    size = (request.out / WEIGHTS).stat().st_size
    return [
        *request.describe(metadata),
        f"{len(arrays)} arrays under the names of {layout}; read back, logits within "
        f"{difference:.2g} of the network's",
        f"wrote {request.out}: {WEIGHTS} ({size / 1e6:.2f} MB), {model_card.FILE}",
    ]


def compare(path: pathlib.Path, model: lrnet_jax.Network, image_size: int) -> float:
    """Reads the weights back: by how much their logits of random images differ at most.

    Raises:
      ConfigError: they differ at all beyond the rounding of one float32.
    """
    read, _ = read_arrays(path)
    tree, _ = to_tree(read, model.variant)
    functional, *variables = split(model)
    model.eval()  # `split` leaves a network in training mode
    shape = (1, image_size, image_size, model.variant.in_channels)
    images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    logits = jax.jit(lambda *trees: merge(functional.evaluate, *trees)(images))
    want = np.asarray(logits(*variables))
    found = np.asarray(logits(tree["params"], tree["batch_stats"]))
    difference = float(np.abs(found - want).max())
    if not difference <= np.finfo(np.float32).eps * max(1.0, np.abs(want).max()):
        raise ConfigError(
            f"{path.name} computes other logits than the network: they differ by "
            f"{difference:.3g}; nothing was exported"
        )
    return difference


def timm_config(model: lrnet_jax.Network, record: Mapping[str, Any]) -> dict[str, Any]:
    """The network and its images in the form of timm's config.json."""
    side = record["image_size"]
    return {
        "architecture": record["network"],
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "label_names": record["class_names"],
        "pretrained_cfg": {
            "input_size": [model.variant.in_channels, side, side],
            "interpolation": "bicubic",
            "crop_pct": side / record["resize"],
            "crop_mode": "center",
            "mean": [value / 255 for value in record["mean"]],
            "std": [value / 255 for value in record["std"]],
            "num_classes": model.num_classes,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def usage(record: Mapping[str, Any], variant: lrnet_jax.Variant) -> str:
    """How the weights are loaded, as Markdown."""
    network, classes = record["network"], record["num_classes"]
    lines = [
        f"* lrnet_jax: `python -m experiments.import_weights --from={WEIGHTS} --out=DIR` makes a "
        "checkpoint, which `lrnet_jax.load_classifier(DIR)` reads."
    ]
    if is_in_timm(network, variant, classes):
        lines.append(
            '* timm: `timm.create_model("local-dir:FOLDER", pretrained=True)` reads this folder.'
        )
        if network in TORCHVISION:
            lines.append(
                f"* torchvision: `torchvision.models.{network}(num_classes={classes})"
                f'.load_state_dict(safetensors.torch.load_file("{WEIGHTS}"))`'
            )
    return "\n".join(lines)


def is_in_timm(network: str, variant: lrnet_jax.Variant, num_classes: int) -> bool:
    """Whether timm has this network under the same name."""
    if network not in TIMM_NETWORKS:
        return False
    known = lrnet_jax.get_variant(network)
    return (variant.stem_strides, variant.stem_pool) == (known.stem_strides, known.stem_pool) and (
        tensors(variant, num_classes) == tensors(known, num_classes)
    )
