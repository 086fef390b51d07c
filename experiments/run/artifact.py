"""A trained network as files for use elsewhere: written, read back and compared."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lrnet_jax
from experiments.config import ConfigError
from experiments.run import modules
from experiments.run.export_request import ExportRequest
from experiments.run.new_folder import new_folder
from lrnet_jax.exported import CUDA_MODULE, MODULE, read_module
from lrnet_jax.functional import split
from lrnet_jax.preprocessing import Preprocessing
from lrnet_jax.training.checkpoint_saver import write_model


def export(
    request: ExportRequest, *, images: int = 1, implementation: str | None = None
) -> list[str]:
    """Writes and verifies an export.

    Args:
      request: what is exported, and to where.
      images: batch size of the module with the fused kernels for NVIDIA GPUs.
      implementation: "xla" leaves that module out.

    Returns:
      Lines that report what was written and how well it agrees with the network.

    Raises:
      CheckpointError: the checkpoint cannot be read.
      ConfigError: the folder cannot be written, or what was written computes other logits than the
        network.
    """
    model, metadata, record = request.load()
    preprocessing = Preprocessing.from_metadata(metadata)
    side = preprocessing.image_size
    # The module takes any number of images, and one is a case of its own in the operator.
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    logits = lrnet_jax.Classifier(model, preprocessing).logits(pixels)

    with new_folder(request.out) as part:
        folded = lrnet_jax.fold_priors(model)
        _write_checkpoint(part, folded, {**metadata, "scores": record["scores"]})
        modules.write_module(part / MODULE, folded, preprocessing)
        has_kernels = implementation != "xla" and modules.write_cuda_module(
            part / CUDA_MODULE, folded, preprocessing, images
        )
        modules.write_about(part, record, images if has_kernels else None)
        comparison = verify(part, pixels, logits)
        request.write_card(part, record, modules.USAGE)
    return [
        *request.describe(metadata),
        *comparison,
        *_describe(request.out, images if has_kernels else None),
    ]


def _describe(out: pathlib.Path, cuda_images: int | None) -> list[str]:
    """Lines about what each file promises."""
    lines = []
    if cuda_images is not None:
        lines.append(
            f"{CUDA_MODULE}: batches of {cuda_images} by the fused kernels, for JAX "
            f"{jax.__version__} alone, since JAX promises nothing for their custom calls; "
            "--implementation=xla leaves it out"
        )
    module = (out / MODULE).stat().st_size
    total = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return [*lines, f"wrote {out}: {total / 1e6:.2f} MB, {module / 1e6:.2f} of them {MODULE}"]


def _write_checkpoint(
    folder: pathlib.Path, model: lrnet_jax.Network, metadata: dict[str, Any]
) -> None:
    """Writes a checkpoint for inference."""
    _, params, batch_stats = split(model)
    model.eval()  # `split` leaves a network in training mode
    record = {key: value for key, value in metadata.items() if key not in ("skipped", "damaged")}
    record["variant"] = json.loads(json.dumps(dataclasses.asdict(model.variant)))
    write_model(folder, {"params": params, "batch_stats": batch_stats}, record)


def verify(folder: pathlib.Path, pixels: np.ndarray, logits: np.ndarray) -> list[str]:
    """Reads an export back and compares what it computes with the network.

    Args:
      folder: the export.
      pixels: images (batch, H, W, 3) uint8.
      logits: of the network for these images.

    Returns:
      A line for each of checkpoint and module, and one for the platforms.

    Raises:
      ConfigError: they differ by more than rounding.
    """
    loaded = lrnet_jax.load_classifier(folder)
    about = lrnet_jax.load_exported(folder).about
    names = [MODULE]
    if (folder / CUDA_MODULE).exists() and jax.default_backend() == "gpu":
        names.append(CUDA_MODULE)
    found = {"checkpoint": loaded.logits(pixels)}
    for name in names:
        module = read_module(folder / name)
        logits_of = lrnet_jax.Exported(about, module).logits
        found[name] = np.concatenate([logits_of(pixels[:1]), logits_of(pixels[1:])])
    # Sums are taken in another order, in the dtype of the activations, through some fifty layers.
    scale = max(1.0, np.abs(logits).max())
    tolerance = 64 * float(jnp.finfo(loaded.model.variant.dtype).eps) * scale
    lines = []
    for name, computed in found.items():
        error = float(np.abs(np.asarray(computed) - logits).max())
        if not error <= tolerance:
            raise ConfigError(
                f"{name} computes other logits than the network: they differ by {error:.3g}, "
                f"more than {tolerance:.3g}; nothing was exported"
            )
        lines.append(f"{name}: logits within {error:.2g} of the network's, on {jax.devices()[0]}")
    platforms = read_module(folder / MODULE).platforms
    others = [name for name in platforms if name != jax.devices()[0].platform]
    lines.append(
        f"{MODULE}: any batch size, lowered for {', '.join(platforms)}; "
        f"not run on {', '.join(others)}"
    )
    return lines
