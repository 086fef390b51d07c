"""A trained network as an ONNX file, written by jax2onnx and run by onnxruntime.

network.onnx      images uint8 (batch, H, W, 3) -> logits float32, with weights and normalisation,
                  for any batch size
classifier.json   size, crop and class names
README.md         the model card

The operator is written as the reference has it, which unfolds the windows. Opset 23 is that of ONNX
1.18.
"""

import contextlib
import logging
import pathlib
import shlex
import unittest.mock
import warnings
from typing import Any

import jax
import jax.extend.core
import numpy as np

import lrnet_jax
from experiments.config import ConfigError
from experiments.report import model_card
from experiments.run import modules, pasteable
from experiments.run.export_request import ExportRequest
from experiments.run.new_folder import new_folder
from lrnet_jax.exported import ABOUT
from lrnet_jax.preprocessing import Preprocessing
from pallas_kernels.platform_switch import without_switch

FILE = "network.onnx"
OPSET = 23
CONVERTER = "jax2onnx>=0.17,<0.18"
BATCHES = (1, 3)  # sizes at which the file is compared
TOLERANCE = 1e-4  # of the largest logit; LR-Net-50 with random weights differs by 1.5e-5
USAGE = """\
With onnxruntime (`pip install onnxruntime pillow`), in this folder:

```python
import json
import numpy as np, onnxruntime
from PIL import Image

about = json.load(open("classifier.json"))
network = onnxruntime.InferenceSession("network.onnx", providers=["CPUExecutionProvider"])
image, size = Image.open("image.jpg").convert("RGB"), about["image_size"]
short = [int(about["resize"] * side / min(image.size)) for side in image.size]
left, top = (round((side - size) / 2) for side in short)
image = image.resize(short, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
(logits,) = network.run(["logits"], {"images": np.asarray(image)[None]})
for label in np.argsort(-logits[0])[:5]:
    print(logits[0, label], about["class_names"][label])
```"""


def export_onnx(request: ExportRequest) -> list[str]:
    """Writes a network, runs the file and compares it with the network.

    Returns:
      Lines that report what was written and how well it agrees with the network.

    Raises:
      CheckpointError: the checkpoint cannot be read.
      ConfigError: the folder cannot be written, a package is missing, or the file computes other
        logits than the network.
    """
    _require()
    # Runtimes have few operators for bfloat16.
    model, metadata, record = request.load("float32")
    preprocessing = Preprocessing.from_metadata(metadata)
    with new_folder(request.out) as part:
        part.mkdir()
        folded = modules.for_inference(lrnet_jax.fold_priors(model), "reference")
        convert(part / FILE, folded, preprocessing)
        lines = compare(part / FILE, lrnet_jax.Classifier(model, preprocessing))
        modules.write_about(part, record, None)
        request.write_card(part, record, USAGE)
    size = (request.out / FILE).stat().st_size
    return [
        *request.describe(metadata),
        *lines,
        f"wrote {request.out}: {FILE} ({size / 1e6:.2f} MB), {ABOUT}, {model_card.FILE}",
    ]


def compare(path: pathlib.Path, classifier: lrnet_jax.Classifier) -> list[str]:
    """Runs a file on random images and compares its logits with those of the network.

    Raises:
      ConfigError: onnxruntime cannot read the file, or they differ by more than rounding.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as refusal:  # onnxruntime has a kind for each code, which share no base
        raise ConfigError(
            f"onnxruntime refuses what the converter wrote, so nothing was exported: {refusal}"
        ) from refusal
    side, random = classifier.preprocessing.image_size, np.random.default_rng(0)
    lines = []
    for count in BATCHES:
        pixels = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        want = classifier.logits(pixels)
        (logits,) = session.run(["logits"], {"images": pixels})
        error = float(np.abs(logits - want).max())
        # Sums are taken in another order, through up to a hundred layers that amplify rounding.
        tolerance = TOLERANCE * max(1.0, float(np.abs(want).max()))
        if not error <= tolerance:
            raise ConfigError(
                f"{path.name} computes other logits than the network: they differ by {error:.3g}, "
                f"more than {tolerance:.3g}; nothing was exported"
            )
        lines.append(
            f"{path.name}: logits of {count} images within {error:.2g} of the network's, in "
            f"onnxruntime {onnxruntime.__version__} on the CPU"
        )
    return lines


def convert(path: pathlib.Path, model: lrnet_jax.Network, preprocessing: Preprocessing) -> None:
    """Writes a network whose local relations run with the reference."""
    import onnx
    from jax2onnx import to_onnx

    model.eval()
    side = preprocessing.image_size
    images: Any = jax.ShapeDtypeStruct(("batch", side, side, 3), np.uint8)
    level = logging.getLogger("onnx_ir").level
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it says of most tensors what it skips
    try:
        with warnings.catch_warnings(), without_switch(), _name_that_moved():
            warnings.simplefilter("ignore")  # the converter's own
            written = to_onnx(
                modules.network_function(model, preprocessing),
                [images],
                model_name="lrnet_jax",
                opset=OPSET,
                input_names=["images"],
                output_names=["logits"],
            )
    finally:
        logging.getLogger("onnx_ir").setLevel(level)
    onnx.checker.check_model(written)
    onnx.save(written, path)


def _name_that_moved() -> contextlib.AbstractContextManager[object]:
    """The converter finds `ClosedJaxpr` where JAX had it before 0.11."""
    return unittest.mock.patch.object(
        jax._src.core, "ClosedJaxpr", jax.extend.core.ClosedJaxpr, create=True
    )


def _require() -> None:
    try:
        import jax2onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        # It wants an orbax-checkpoint before ours, which it does not use.
        converter = f"{pasteable.python()} -m pip install --no-deps {shlex.quote(CONVERTER)}"
        raise ConfigError(f"{error}; {pasteable.install('onnx')} && {converter}") from error
