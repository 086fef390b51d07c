"""Writes a trained network for use elsewhere, and runs what it has written.

    python -m experiments.export --run=runs/lrnet50 --out=exports/lrnet50

DIR then holds

    model, metadata, seal.json   a checkpoint for inference, which lrnet_jax.load_checkpoint(DIR)
                                 reads: the averaged weights if the run has them, prior networks
                                 folded into tables, no optimiser
    network.stablehlo            images uint8 (batch, H, W, 3) -> logits float32, for CPU and CUDA,
                                 with weights and normalisation, for any batch size; batch
                                 normalisations are folded into the weights before them
    network_cuda.stablehlo       the same for batches of --images with the fused kernels, if the
                                 network has local relations; for the JAX that wrote it alone
    classifier.json              size, crop and class names
    README.md                    the model card: results, recipe, images, licences, and the lines
                                 that run network.stablehlo with JAX alone

The first two are read back and run on random images. Their logits must be those of the network.
lrnet_jax.load_exported(DIR).predict("cat.jpg") gives names and probabilities.

    python -m experiments.export --run=runs/resnet50 --out=exports/resnet50 --format=safetensors

writes the weights for other libraries instead: model.safetensors, for ResNets under the names of
torchvision and timm. `experiments.import_weights` reads it.

    python -m experiments.export --run=runs/resnet50 --out=exports/resnet50 --format=onnx

writes network.onnx instead, which onnxruntime runs, and compares it with the network. It needs

    python -m pip install -e '.[onnx]'
    python -m pip install --no-deps 'jax2onnx>=0.17,<0.18'

The converter is installed alone, because it asks for an older Orbax, which it does not use here.
"""

from absl import flags

from experiments.cli import command_line, run_flags
from experiments.config import ConfigError
from experiments.run.artifact import export
from experiments.run.export_request import ExportRequest
from experiments.run.new_folder import check_new
from experiments.run.onnx_file import export_onnx
from experiments.run.weights_file import export_weights

STABLEHLO, SAFETENSORS, ONNX = "stablehlo", "safetensors", "onnx"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    run_flags.define_flags(flag_values)
    flags.DEFINE_string("out", None, "A new folder.", flag_values=flag_values)
    flags.DEFINE_integer(
        "images", 1, "Batch size of the module with the fused kernels.", lower_bound=1,
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "implementation", None, ("xla",),
        "xla leaves out the module with the fused kernels, which has custom calls.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "raw", False, "Use the weights of the last step, not their averages.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "format", STABLEHLO, (STABLEHLO, SAFETENSORS, ONNX),
        "A checkpoint and a module that runs, the weights alone, or a file for onnxruntime.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_string(
        "license", None, "Licence of the weights, for the model card, such as apache-2.0.",
        flag_values=flag_values,
    )  # fmt: skip


def main(options: flags.FlagValues) -> None:
    """Exports a run."""
    path = run_flags.chosen_run(options)
    out = check_new(command_line.require(options, "out", "exports/lrnet50"), "out")
    ema = False if options.raw else None
    request = ExportRequest(path, out, ema=ema, license_=options.license)
    if options.format in (SAFETENSORS, ONNX):
        for name in ("images", "implementation"):
            if options[name].present:
                value = options[name].value
                raise ConfigError(f"--{name}={value} is of a module, not of {options.format}")
        write = export_weights if options.format == SAFETENSORS else export_onnx
        lines = write(request)
    else:
        lines = export(request, images=options.images, implementation=options.implementation)
    print(*lines, sep="\n")


if __name__ == "__main__":
    command_line.run(main, define_flags)
