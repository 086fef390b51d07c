"""ONNX files: onnxruntime computes what the network does. Skipped without the extra `onnx`."""

import json
import re
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import lrnet_jax
from experiments import config as configs
from experiments import export
from experiments.cli import command_line
from experiments.config import ConfigError
from experiments.run import onnx_file
from experiments.run.pasteable import ROOT
from lrnet_jax.functional import split
from lrnet_jax.training.checkpoint_saver import write_model
from tests.experiments.tiny_run import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint for inference, of a network with a pool, priors and statistics of its own."""
    config = tiny(**{"model.dtype": "bfloat16", "model.stem_pool": "true"})
    model = lrnet_jax.create_from_variant(config.model, 10, nnx.Rngs(0))
    model(jax.random.normal(jax.random.key(0), (4, 28, 28, 3)))
    _, params, batch_stats = split(model)
    record = configs.to_dict(config)
    metadata = {
        "network": config.network, "variant": record["model"], "num_classes": 10,
        "class_names": None, "mean": [73.0] * 3, "std": [90.0] * 3, "image_size": 28,
        "resize": 28, "step": 4, "config": record,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("run") / "export"
    write_model(folder, {"params": params, "batch_stats": batch_stats}, metadata)
    return folder


def main(*arguments):
    return export.main(command_line.parse(arguments, export.define_flags))


def test_a_file_and_how_it_is_used(run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "onnx"
    main(f"--run={run}", f"--out={out}", "--format=onnx")
    printed = capsys.readouterr().out
    for text in ("step 4 of", "logits of 1 images within", "logits of 3 images within", "wrote"):
        assert text in printed
    about = json.loads((out / "classifier.json").read_text())
    assert about["class_names"][0] == "T-shirt/top"

    pixels = np.random.default_rng(1).integers(0, 256, (30, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out / "image.jpg")
    (lines,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['jax'] = None\n{lines}"],
        cwd=out, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    classifier = lrnet_jax.load_classifier(run, dtype="float32")
    names = [line.partition(" ")[2] for line in done.stdout.splitlines()]
    assert names == [guess.name for guess in classifier.predict(out / "image.jpg")]

    network = lrnet_jax.Classifier(classifier.model, classifier.preprocessing)
    monkeypatch.setattr(network, "_logits", lambda pixels: np.ones((len(pixels), 10), np.float32))
    with pytest.raises(ConfigError, match=r"network\.onnx computes other logits than the network"):
        onnx_file.compare(out / onnx_file.FILE, network)
    (out / "damaged.onnx").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="onnxruntime refuses what the converter wrote"):
        onnx_file.compare(out / "damaged.onnx", network)


def test_what_is_missing_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ConfigError, match=r"jax2onnx.*pip install -e .*\[onnx\].* --no-deps 'jax2"):
        main(f"--run={run}", f"--out={tmp_path / 'out'}", "--format=onnx")
    with pytest.raises(ConfigError, match="--implementation=xla is of a module, not of onnx"):
        main(f"--run={run}", f"--out={tmp_path}/o", "--format=onnx", "--implementation=xla")
    assert not (tmp_path / "out").exists()


def test_the_converter_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["dependency-groups"]["converter"] == [onnx_file.CONVERTER]
    locked = re.findall(r"^([\w-]+)==", (ROOT / "requirements-onnx.lock").read_text(), re.MULTILINE)
    assert {"jax2onnx", "onnx", "onnx-ir", "onnxruntime"} <= set(locked)
    assert f"--no-deps '{onnx_file.CONVERTER}'" in export.__doc__
