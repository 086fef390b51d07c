"""Measures what folded normalisations are worth in an export: time and size of its module.

python -m tests.lrnet_jax.folded_forward --networks=resnet50,lrnet26 --batch_size=8
"""

import argparse
import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import export

import lrnet_jax
from experiments.run import modules, onnx_file
from lrnet_jax.folding import fold_norms
from lrnet_jax.preprocessing import Preprocessing
from pallas_kernels.tools.timing import interleave

PREPROCESSING = Preprocessing(224, 256, (127.5,) * 3, (60.0,) * 3)

Run = Callable[[], Any]


def stablehlo(model: lrnet_jax.Network, pixels: np.ndarray) -> tuple[Run, int]:
    """A forward pass of the module for JAX, and the module's bytes."""
    function = jax.jit(modules.network_function(model, PREPROCESSING))
    file = export.export(function)(jax.ShapeDtypeStruct(pixels.shape, np.uint8)).serialize()
    return functools.partial(jax.jit(export.deserialize(file).call), pixels), len(file)


def onnx(model: lrnet_jax.Network, pixels: np.ndarray) -> tuple[Run, int]:
    """A forward pass of the file for onnxruntime, and the file's bytes."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / onnx_file.FILE
        onnx_file.convert(path, model, PREPROCESSING)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return functools.partial(session.run, ["logits"], {"images": pixels}), path.stat().st_size


def main() -> None:
    """Prints a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default="resnet50,lrnet26")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--onnx", action="store_true")
    options = parser.parse_args()
    side = PREPROCESSING.image_size
    shape = (options.batch_size, side, side, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    make, implementation = (onnx, "reference") if options.onnx else (stablehlo, "xla")
    for name in options.networks.split(","):
        model = lrnet_jax.create_model(name, implementation=implementation, rngs=nnx.Rngs(0))
        plain = lrnet_jax.fold_priors(model)
        networks = {"plain": plain, "folded": fold_norms(plain)}
        for network in networks.values():
            network.eval()
        made = {title: make(network, pixels) for title, network in networks.items()}
        timings = interleave({title: run for title, (run, _) in made.items()}, options.rounds)
        milliseconds = {title: 1e3 * timing.cpu for title, timing in timings.items()}
        ratio = milliseconds["folded"] / milliseconds["plain"]
        print(
            f"{name}, batch {options.batch_size}: {milliseconds['folded']:.1f} ms of processor "
            f"time folded, {milliseconds['plain']:.1f} plain: {ratio:.3f}; "
            f"bytes {made['folded'][1]}, {made['plain'][1]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
