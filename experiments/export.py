"""Writes a trained network for use elsewhere, and runs what it wrote.

    python -m experiments.export --run=runs/lrnet50 --out=exports/lrnet50

DIR then holds

    model, metadata, seal.json   a checkpoint for inference: the averaged weights where the run kept
                                 them, prior networks folded into tables, no optimiser;
                                 lrnet_jax.load_checkpoint(DIR) reads it
    network.stablehlo            images uint8 (batch, H, W, 3) -> logits float32, for CPU and CUDA,
                                 weights and normalisation in it; needs JAX alone:
                                 jax.export.deserialize(bytes).call(images)

Both are read back and run on random images; their logits must be those of the network.
"""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import export as jax_export

import lrnet_jax
from experiments.cli import command_line, run_flags
from experiments.config import ConfigError
from lrnet_jax.data.augment import normalize
from lrnet_jax.functional import split
from lrnet_jax.training.checkpoint_saver import write_model
from pallas_kernels.pallas import EXPORT_CHECKS, absent_gpu

MODULE = "network.stablehlo"
PLATFORMS = ("cpu", "cuda")


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    run_flags.define_flags(flag_values)
    flags.DEFINE_string("out", None, "A new folder.", flag_values=flag_values)
    flags.DEFINE_integer(
        "images", 1, "Batch size of the module.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_boolean(
        "raw", False, "Use the weights of the last step, not their averages.",
        flag_values=flag_values,
    )  # fmt: skip


def main(options: flags.FlagValues) -> None:
    """Entry point."""
    path = run_flags.chosen_run(options)
    out = pathlib.Path(command_line.require(options, "out", "exports/lrnet50"))
    for line in export(path, out, images=options.images, ema=False if options.raw else None):
        print(line)


def export(
    path: str | pathlib.Path, out: pathlib.Path, *, images: int = 1, ema: bool | None = None
) -> list[str]:
    """Writes and verifies an export.

    Args:
      path: a workdir or a step directory.
      out: a folder that is not there yet.
      images: batch size of the module.
      ema: which weights, see `lrnet_jax.load_checkpoint`.

    Returns:
      Lines that say what was written and how far it agrees with the network.

    Raises:
      CheckpointError: the checkpoint cannot be read.
      ConfigError: the folder is there, or what was written does not compute what the network does.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; give another --out")
    model, metadata = lrnet_jax.load_checkpoint(path, ema=ema)
    side = metadata["image_size"]
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    want = np.asarray(jax.jit(network_function(model, metadata))(pixels))

    folded = lrnet_jax.fold_priors(model)
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _, params, batch_stats = split(folded)
        folded.eval()  # `split` leaves a network in training mode
        record = {
            key: value for key, value in metadata.items() if key not in ("skipped", "damaged")
        }
        record["variant"] = json.loads(json.dumps(dataclasses.asdict(folded.variant)))
        write_model(part, {"params": params, "batch_stats": batch_stats}, record)
        write_module(part / MODULE, folded, metadata, pixels.shape)
        said = verify(part, pixels, want)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    module = (out / MODULE).stat().st_size
    total = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return [
        f"step {metadata['step']} of {path}, {'averaged' if metadata['ema'] else 'last'} weights",
        *said,
        f"wrote {out}: {total / 1e6:.2f} MB, {module / 1e6:.2f} of them {MODULE}",
    ]


def network_function(model: lrnet_jax.Network, metadata: dict[str, Any]) -> Any:
    """Images uint8 -> logits, of a network in evaluation mode."""
    mean, std = tuple(metadata["mean"]), tuple(metadata["std"])

    def logits(pixels: jax.Array) -> jax.Array:
        return model(normalize(pixels, mean, std, model.variant.dtype))

    return logits


def write_module(
    path: pathlib.Path,
    model: lrnet_jax.Network,
    metadata: dict[str, Any],
    shape: tuple[int, ...],
) -> None:
    """Serialises a network for all of `PLATFORMS`, its weights as constants."""
    exporter = jax_export.export(
        jax.jit(network_function(model, metadata)),
        platforms=PLATFORMS,
        disabled_checks=EXPORT_CHECKS,
    )
    with absent_gpu():
        artifact = exporter(jax.ShapeDtypeStruct(shape, np.uint8))
    path.write_bytes(artifact.serialize())


def verify(folder: pathlib.Path, pixels: np.ndarray, want: np.ndarray) -> list[str]:
    """Reads an export back and compares its logits.

    Raises:
      ConfigError: they differ by more than rounding.
    """
    loaded, metadata = lrnet_jax.load_checkpoint(folder)
    module = jax_export.deserialize(bytearray((folder / MODULE).read_bytes()))
    got = {
        "checkpoint": jax.jit(network_function(loaded, metadata))(pixels),
        MODULE: module.call(pixels),
    }
    # Sums in another order, in the dtype of the activations, through some fifty layers.
    tolerance = 64 * float(jnp.finfo(loaded.variant.dtype).eps) * max(1.0, np.abs(want).max())
    said = []
    for name, logits in got.items():
        error = float(np.abs(np.asarray(logits) - want).max())
        if not error <= tolerance:
            raise ConfigError(
                f"{name} computes other logits than the network: they differ by {error:.3g}, "
                f"more than {tolerance:.3g}; nothing was exported"
            )
        said.append(f"{name}: logits within {error:.2g} of the network's, on {jax.devices()[0]}")
    others = [name for name in module.platforms if name != jax.devices()[0].platform]
    return [*said, f"lowered for {', '.join(module.platforms)}; not run on {', '.join(others)}"]


if __name__ == "__main__":
    command_line.run(main, define_flags)
