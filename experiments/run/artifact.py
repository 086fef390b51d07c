"""A trained network as files for use elsewhere: written, read back and compared."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

import lrnet_jax
from experiments.config import ConfigError
from experiments.report import model_card
from lrnet_jax.data.augment import normalize
from lrnet_jax.functional import split
from lrnet_jax.training.checkpoint_saver import write_model
from pallas_kernels import jax_triton, pallas
from pallas_kernels.pallas import absent_gpu

MODULE = "network.stablehlo"
PLATFORMS = ("cpu", "cuda")
USAGE = f"""\
* lrnet_jax: `lrnet_jax.load_classifier(FOLDER).predict("image.jpg")`.
* JAX alone: `jax.export.deserialize(bytearray(open("{MODULE}", "rb").read())).call(pixels)`
  takes the cropped images as uint8 (batch, height, width, 3) and gives the logits."""


def export(
    path: str | pathlib.Path,
    out: pathlib.Path,
    *,
    images: int = 1,
    ema: bool | None = None,
    license_: str | None = None,
) -> list[str]:
    """Writes and verifies an export.

    Args:
      path: a workdir or a step directory.
      out: a folder that does not exist yet.
      images: batch size of the module.
      ema: which weights, see `lrnet_jax.load_checkpoint`.
      license_: of the weights, for the model card, None if it is not stated.

    Returns:
      Lines that report what was written and how well it agrees with the network.

    Raises:
      CheckpointError: the checkpoint cannot be read.
      ConfigError: the folder exists, or what was written computes other logits than the network.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; give another --out")
    model, metadata = lrnet_jax.load_checkpoint(path, ema=ema)
    side = metadata["image_size"]
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    logits = np.asarray(jax.jit(_network_function(model, metadata))(pixels))

    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        folded = lrnet_jax.fold_priors(model)
        record = model_card.describe_network(path, metadata)
        _write_checkpoint(part, folded, {**metadata, "scores": record["scores"]})
        _write_module(part / MODULE, folded, metadata, pixels.shape)
        comparison = verify(part, pixels, logits)
        card = model_card.write(record, title=out.name, usage=USAGE, license_=license_)
        (part / model_card.FILE).write_text(card)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    module = (out / MODULE).stat().st_size
    total = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return [
        f"step {metadata['step']} of {path}, {'averaged' if metadata['ema'] else 'last'} weights",
        *comparison,
        f"wrote {out}: {total / 1e6:.2f} MB, {module / 1e6:.2f} of them {MODULE}",
    ]


def _network_function(
    model: lrnet_jax.Network, metadata: dict[str, Any]
) -> Callable[[jax.Array], jax.Array]:
    """Images uint8 -> logits, of a network in evaluation mode."""
    mean, std = tuple(metadata["mean"]), tuple(metadata["std"])

    def logits(pixels: jax.Array) -> jax.Array:
        return model(normalize(pixels, mean, std, model.variant.dtype))

    return logits


def _write_checkpoint(
    folder: pathlib.Path, model: lrnet_jax.Network, metadata: dict[str, Any]
) -> None:
    """Writes a checkpoint for inference."""
    _, params, batch_stats = split(model)
    model.eval()  # `split` leaves a network in training mode
    record = {key: value for key, value in metadata.items() if key not in ("skipped", "damaged")}
    record["variant"] = json.loads(json.dumps(dataclasses.asdict(model.variant)))
    write_model(folder, {"params": params, "batch_stats": batch_stats}, record)


def _write_module(
    path: pathlib.Path,
    model: lrnet_jax.Network,
    metadata: dict[str, Any],
    shape: tuple[int, ...],
) -> None:
    """Serialises a network for all of `PLATFORMS`, with its weights as constants."""
    exporter = jax_export.export(
        jax.jit(_network_function(model, metadata)),
        platforms=PLATFORMS,
        disabled_checks=(*pallas.EXPORT_CHECKS, *jax_triton.EXPORT_CHECKS),
    )
    with absent_gpu():
        artifact = exporter(jax.ShapeDtypeStruct(shape, np.uint8))
    path.write_bytes(artifact.serialize())


def verify(folder: pathlib.Path, pixels: np.ndarray, logits: np.ndarray) -> list[str]:
    """Reads an export back and compares what it computes with the network.

    Args:
      folder: the export.
      pixels: images (batch, H, W, 3) uint8.
      logits: of the network for these images.

    Returns:
      A line for each file, and one for the platforms.

    Raises:
      ConfigError: they differ by more than rounding.
    """
    loaded, metadata = lrnet_jax.load_checkpoint(folder)
    module = jax_export.deserialize(bytearray((folder / MODULE).read_bytes()))
    found = {
        "checkpoint": jax.jit(_network_function(loaded, metadata))(pixels),
        MODULE: module.call(pixels),
    }
    # Sums are taken in another order, in the dtype of the activations, through some fifty layers.
    scale = max(1.0, np.abs(logits).max())
    tolerance = 64 * float(jnp.finfo(loaded.variant.dtype).eps) * scale
    lines = []
    for name, computed in found.items():
        error = float(np.abs(np.asarray(computed) - logits).max())
        if not error <= tolerance:
            raise ConfigError(
                f"{name} computes other logits than the network: they differ by {error:.3g}, "
                f"more than {tolerance:.3g}; nothing was exported"
            )
        lines.append(f"{name}: logits within {error:.2g} of the network's, on {jax.devices()[0]}")
    others = [name for name in module.platforms if name != jax.devices()[0].platform]
    lines.append(f"lowered for {', '.join(module.platforms)}; not run on {', '.join(others)}")
    return lines
