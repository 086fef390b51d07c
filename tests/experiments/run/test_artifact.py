"""Exports: they compute what the network does, for any batch, and run with JAX alone."""

import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import lrnet_jax
from experiments.config import ConfigError
from experiments.run.artifact import export, verify
from experiments.run.export_request import ExportRequest
from experiments.run.modules import write_module
from experiments.run.results import FILE as RESULT
from experiments.train import train
from lrnet_jax.exported import ABOUT, CUDA_MODULE, MODULE, read_module
from lrnet_jax.training.checkpoints import CheckpointError
from pallas_kernels.platform_switch import compiling_for
from tests.experiments.tiny_run import tiny

# What a program may import that runs an export "with JAX alone".
FOREIGN = ("flax", "orbax", "optax", "lrnet_jax", "pallas_kernels", "experiments", "absl")
ALONE = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FOREIGN}:
            raise ImportError(name + " is not JAX")

sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A finished run and its export: (workdir, folder, what was printed)."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny(**{"train.epochs": "0.0032"}), workdir)
    folder = workdir.parent / "export"
    with compiling_for(10.0):  # as on a B200
        return workdir, folder, "\n".join(export(ExportRequest(workdir, folder), images=2))


def pixels(count, side=28):
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_a_checkpoint_for_inference(exported):
    _, folder, _ = exported
    model, metadata = lrnet_jax.load_checkpoint(folder)
    assert model.variant.prior == "table"
    assert (metadata["step"], metadata["num_classes"]) == (4, 10)
    assert not (folder / "training").exists()


@pytest.mark.parametrize("count", [1, 5])
def test_the_module_computes_what_the_network_does(exported, count):
    workdir, folder, _ = exported
    classifier = lrnet_jax.load_classifier(workdir)
    want = classifier.model(classifier.preprocess(pixels(count)))
    module = read_module(folder / MODULE)
    np.testing.assert_allclose(module.call(pixels(count)), want, atol=1e-5)
    assert module.platforms == ("cpu", "cuda")
    # Everything else a JAX of another release may refuse.
    calls = set(re.findall(r"custom_call @(\w+)", module.mlir_module()))
    assert calls <= {"shape_assertion"}


def test_the_module_with_kernels_is_for_cuda_and_one_batch_size(exported):
    _, folder, printed = exported
    module = read_module(folder / CUDA_MODULE)
    assert module.platforms == ("cuda",)
    assert module.in_avals[0].shape == (2, 28, 28, 3)
    assert "triton" in module.mlir_module()
    assert "fma.rn.f32 " in module.mlir_module()
    assert "f32x2" not in module.mlir_module()  # which older GPUs do not have
    about = json.loads((folder / ABOUT).read_text())
    assert about["cuda"] == {"file": CUDA_MODULE, "batch_size": 2, "jax": jax.__version__}
    assert f"batches of 2 by the fused kernels, for JAX {jax.__version__} alone" in printed


def test_load_exported_predicts_as_the_classifier_does(exported, tmp_path):
    workdir, folder, _ = exported
    file = tmp_path / "photo.png"
    Image.fromarray(pixels(1, 41)[0]).save(file)
    network = lrnet_jax.load_exported(folder)
    images = [file, *pixels(2)]
    want = lrnet_jax.load_classifier(workdir).predict(images)
    for got_row, want_row in zip(network.predict(images), want, strict=True):
        assert [guess.name for guess in got_row] == [guess.name for guess in want_row]
        probabilities = [guess.probability for guess in got_row]
        assert probabilities == pytest.approx([g.probability for g in want_row], rel=1e-4)
    assert repr(network) == "Exported(lrnet_small, 10 classes, 28 pixels)"


def test_a_module_of_one_batch_size_takes_any_number_of_images(exported, monkeypatch):
    """As the one with the kernels, here written for the CPU."""
    _, folder, _ = exported
    network = lrnet_jax.load_exported(folder)
    want = network.logits(pixels(5))
    function = jax.jit(network.module.call)
    three = jax.export.export(function)(jax.ShapeDtypeStruct((3, 28, 28, 3), np.uint8))
    fixed = lrnet_jax.Exported(network.about, three)
    np.testing.assert_allclose(fixed.logits(pixels(5)), want, rtol=1e-5, atol=1e-6)


def test_the_lines_of_the_model_card_need_jax_alone(exported, tmp_path):
    workdir, folder, _ = exported
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for name in (ABOUT, MODULE):
        shutil.copy(folder / name, copy)
    Image.fromarray(pixels(1, 33)[0, :, :31]).save(copy / "image.jpg")
    (lines,) = re.findall(
        r"```python\n(import json.*?)```", (folder / "README.md").read_text(), re.S
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE + lines],
        cwd=copy, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    guesses = lrnet_jax.load_classifier(workdir).predict(copy / "image.jpg")
    assert done.stdout.splitlines() == [f"{g.probability:.1%} {g.name}" for g in guesses]


@pytest.mark.parametrize(
    "fields",
    [{"remat": "blocks"}, {"operator": "non_local", "stem": "convolution"}, {"scope": "full"}],
    ids=str,
)
def test_networks_of_other_kinds(fields, tmp_path):
    variant = lrnet_jax.Variant(
        depths=(1, 1), width=4, stage_channels=8, stem_channels=4, stem_kernel_size=3,
        kernel_size=3, channels_per_group=2, stem_channels_per_group=2, prior="none",
        full_image_pool=(2, 1), **fields,
    )  # fmt: skip
    preprocessing = lrnet_jax.Preprocessing(17, 20, (120.0,) * 3, (60.0,) * 3)
    model = lrnet_jax.create_from_variant(variant, 5, nnx.Rngs(0))
    classifier = lrnet_jax.Classifier(model, preprocessing)
    write_module(tmp_path / MODULE, classifier.model, preprocessing)
    logits = read_module(tmp_path / MODULE).call(pixels(2, 17))
    np.testing.assert_allclose(logits, classifier.logits(pixels(2, 17)), rtol=1e-5, atol=1e-5)


def test_what_is_printed(exported):
    _, folder, printed = exported
    for text in (
        "step 4 of",
        "averaged weights",
        "any batch size, lowered for cpu, cuda; not run on cuda",
        f"wrote {folder}: ",
    ):
        assert text in printed
    assert "not finished" not in printed


def test_no_custom_calls_and_an_unfinished_run(exported, tmp_path):
    """A run without a result stopped early."""
    workdir, _, _ = exported
    stopped = tmp_path / "stopped"
    shutil.copytree(workdir, stopped)
    (stopped / RESULT).unlink()
    printed = "\n".join(export(ExportRequest(stopped, tmp_path / "export"), implementation="xla"))
    assert f"note: {stopped} is not finished; this is an early state of it" in printed
    assert not (tmp_path / "export" / CUDA_MODULE).exists()
    assert "cuda" not in json.loads((tmp_path / "export" / ABOUT).read_text())


def test_a_damaged_export(exported, tmp_path):
    _, folder, _ = exported
    classifier = lrnet_jax.load_classifier(folder)
    with pytest.raises(ConfigError, match="computes other logits than the network"):
        verify(folder, pixels(3), classifier.logits(pixels(3)) + 1)
    copy = tmp_path / "export"
    shutil.copytree(folder, copy)
    file = next((copy / "model" / "d").iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="export is damaged: model/d/"):
        lrnet_jax.load_checkpoint(copy)


def test_what_is_no_export_is_named(exported, tmp_path):
    _, folder, _ = exported
    with pytest.raises(CheckpointError, match=r"is no export: it has no classifier\.json; write"):
        lrnet_jax.load_exported(tmp_path)
    shutil.copy(folder / ABOUT, tmp_path)
    (tmp_path / MODULE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"cannot be read by JAX .*: ") as raised:
        lrnet_jax.load_exported(tmp_path)
    assert "\n" not in str(raised.value)
