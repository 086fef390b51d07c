"""The modules of an export: a network with its weights as a program that runs without lrnet_jax."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import export as jax_export

import lrnet_jax
from lrnet_jax.exported import ABOUT, CUDA_MODULE, MODULE
from lrnet_jax.folding import fold_norms
from lrnet_jax.preprocessing import Preprocessing
from pallas_kernels import jax_triton, pallas
from pallas_kernels.pallas import absent_gpu
from pallas_kernels.platform_switch import compiling_for

PLATFORMS = ("cpu", "cuda")
OLDEST_GPU = 8.0  # kernels for this compute capability run on all newer GPUs too
USAGE = """\
With lrnet_jax:

```python
import lrnet_jax

lrnet_jax.load_exported("FOLDER").predict("image.jpg")  # names and probabilities
```

With JAX alone (`pip install jax flatbuffers pillow`), in this folder:

```python
import json
import jax, numpy as np
from jax import export
from PIL import Image

about = json.load(open("classifier.json"))
network = export.deserialize(bytearray(open("network.stablehlo", "rb").read()))
image, size = Image.open("image.jpg").convert("RGB"), about["image_size"]
short = [int(about["resize"] * side / min(image.size)) for side in image.size]
left, top = (round((side - size) / 2) for side in short)
image = image.resize(short, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
probabilities = np.asarray(jax.nn.softmax(network.call(np.asarray(image)[None])))[0]
for label in np.argsort(-probabilities)[:5]:
    print(f"{probabilities[label]:.1%} {about['class_names'][label]}")
```

`network.call` takes any number of images, uint8 (batch, height, width, 3), on a CPU or an NVIDIA
GPU, and gives the logits. JAX reads the file for at least six months after the release that wrote
it."""


def network_function(
    model: lrnet_jax.Network, preprocessing: Preprocessing
) -> Callable[[jax.Array], jax.Array]:
    """Images uint8 -> logits, of a network in evaluation mode."""

    def logits(pixels: jax.Array) -> jax.Array:
        return model(preprocessing.normalize(pixels, model.variant.dtype))

    return logits


def for_inference(model: lrnet_jax.Network, implementation: str | None) -> lrnet_jax.Network:
    """A copy to be exported: local relations run with an implementation, norms are folded."""
    copy = fold_norms(model)
    # There is no backward pass to save memory for, and converters need not know of `checkpoint`.
    copy.variant = dataclasses.replace(model.variant, remat="none")
    for _, module in nnx.iter_modules(copy):
        if isinstance(module, lrnet_jax.LocalRelation):
            module.implementation = implementation
    return copy


def write_module(
    path: pathlib.Path, model: lrnet_jax.Network, preprocessing: Preprocessing
) -> None:
    """Serialises a network for any batch size and all of `PLATFORMS`, without custom calls."""
    side = preprocessing.image_size
    (batch,) = jax_export.symbolic_shape("batch", constraints=["batch >= 1"])
    function = network_function(for_inference(model, "xla"), preprocessing)
    exporter = jax_export.export(jax.jit(function), platforms=PLATFORMS)
    artifact = exporter(jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8))
    path.write_bytes(artifact.serialize())


def write_cuda_module(
    path: pathlib.Path, model: lrnet_jax.Network, preprocessing: Preprocessing, images: int
) -> bool:
    """Serialises a network for one batch size, with the fused kernels for NVIDIA GPUs.

    Returns:
      Whether the network has layers that use them. Otherwise nothing is written.
    """
    side = preprocessing.image_size
    function = network_function(for_inference(model, None), preprocessing)
    exporter = jax_export.export(
        jax.jit(function),
        platforms=("cuda",),
        disabled_checks=(*pallas.EXPORT_CHECKS, *jax_triton.EXPORT_CHECKS),
    )
    with absent_gpu(), compiling_for(OLDEST_GPU):
        artifact = exporter(jax.ShapeDtypeStruct((images, side, side, 3), np.uint8))
    if "triton" not in artifact.mlir_module():
        return False
    path.write_bytes(artifact.serialize())
    return True


def about(record: Mapping[str, Any], cuda_images: int | None) -> dict[str, Any]:
    """What `classifier.json` has.

    Args:
      record: of the model card.
      cuda_images: batch size of the module with the fused kernels, None without one.
    """
    names = record["class_names"] or [f"class {i}" for i in range(record["num_classes"])]
    found = {
        "network": record["network"],
        "step": record["step"],
        "input": "uint8 RGB (batch, image_size, image_size, 3), levels of 0 to 255",
        "output": "float32 logits (batch, num_classes)",
        "image_size": record["image_size"],
        "resize": record["resize"],
        "interpolation": "bicubic",
        "crop": "centre",
        "mean": record["mean"],
        "std": record["std"],
        "normalized_by": MODULE,
        "num_classes": record["num_classes"],
        "class_names": names,
        "jax": jax.__version__,
    }
    if cuda_images is not None:
        found["cuda"] = {"file": CUDA_MODULE, "batch_size": cuda_images, "jax": jax.__version__}
    return found


def write_about(folder: pathlib.Path, record: Mapping[str, Any], cuda_images: int | None) -> None:
    """Writes `classifier.json`."""
    text = json.dumps(about(record, cuda_images), indent=2, ensure_ascii=False)
    (folder / ABOUT).write_text(f"{text}\n", encoding="utf-8")
