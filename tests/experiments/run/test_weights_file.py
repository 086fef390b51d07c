"""A network as a file of weights: what is in the folder, who can read it, and the model card."""

import json
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import lrnet_jax
from experiments import config as configs
from experiments import export, import_weights
from experiments.cli import command_line
from experiments.config import ConfigError
from experiments.recipes import RECIPES
from experiments.run import weights_file
from experiments.run.export_request import ExportRequest
from experiments.run.overrides import override
from experiments.run.results import known_scores
from experiments.run.weights_file import export_weights
from lrnet_jax.functional import split
from lrnet_jax.training.checkpoints import flatten
from tests.experiments.finished_run import STEP, checkpoint, finish
from tests.lrnet_jax.foreign import torch_golden


@pytest.fixture(scope="module")
def lrnet(tmp_path_factory):
    """A finished run of a small LR-Net, and its network."""
    workdir = tmp_path_factory.mktemp("runs") / "small"
    config = RECIPES["quickstart"]
    for path, text in (("model.depths", "1,1"), ("optim.learning_rate", "0.07")):
        config = override(config, path, text)
    model = lrnet_jax.create_from_variant(config.model, 10, nnx.Rngs(0))
    finish(workdir, config, 91.5)
    checkpoint(workdir, config, model)
    return workdir, model


def test_an_lrnet_keeps_our_names_and_comes_back_whole(lrnet, tmp_path):
    workdir, model = lrnet
    printed = "\n".join(export_weights(ExportRequest(workdir, tmp_path / "out")))
    assert f"step {STEP} of" in printed
    assert "arrays under the names of lrnet_jax; read back, logits within 0 of" in printed
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        "model.safetensors",
    ]

    _, params, batch_stats = split(model)
    want = flatten({"params": params, "batch_stats": batch_stats})
    arrays = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {name.replace(".", "/") for name in arrays} == set(want)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, want[name.replace(".", "/")])

    typed = [f"--from={tmp_path / 'out' / 'model.safetensors'}", f"--out={tmp_path / 'back'}"]
    import_weights.main(command_line.parse(typed, import_weights.define_flags))
    back, metadata = lrnet_jax.load_checkpoint(tmp_path / "back")
    assert back.variant == model.variant
    assert (metadata["step"], metadata["resize"], metadata["mean"]) == (STEP, 28, [72.9] * 3)
    assert metadata["class_names"][9] == "ankle boot"
    assert metadata["scores"]["top1"] == 91.5
    found = flatten(dict(zip(("params", "batch_stats"), split(back)[1:], strict=True)))
    for path, array in want.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_the_model_card(lrnet, tmp_path):
    workdir, model = lrnet
    export_weights(ExportRequest(workdir, tmp_path / "mine", license_="cc-by-4.0"))
    card = (tmp_path / "mine" / "README.md").read_text()
    assert card.startswith(
        "---\nlicense: cc-by-4.0\nlibrary_name: lrnet_jax\npipeline_tag: image-classification\n"
        "tags: [image-classification, jax, lrnet_small]\ndatasets: [fashion_mnist]\n"
        "metrics: [accuracy]\n---\n\n# mine\n"
    )
    for text in (
        "| fashion_mnist_subset, evaluation split | 2000 | 91.50 % | 99.96 % | 0.5000 |",
        "--config=quickstart",
        "--config.model.depths=1,1 \\\n        --config.optim.learning_rate=0.07 \\\n",
        "resized to 28 pixels (bicubic, antialiased), and the central 28 x 28",
        "Classes: T-shirt/top, trouser, ",
        "| weights | cc-by-4.0 |",
        "| images (fashion_mnist_subset) | MIT (Zalando SE) |",
    ):
        assert text in card
    macs = lrnet_jax.complexity.network_cost(model.variant, 10, 28).macs
    assert f"| multiply-adds | {macs / 1e9:.3f} G at 28 x 28 |" in card
    # Typing what it says gives the configuration of the run.
    flags = re.findall(r"--config\.(\S+)=(\S+)", card)
    config = RECIPES["quickstart"]
    for path, text in flags:
        config = override(config, path, text)
    assert config == configs.load(workdir / configs.FILE)


def test_scores_of_other_weights_are_not_on_the_card(lrnet, tmp_path):
    workdir, _ = lrnet
    shutil.copytree(workdir, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").write_text(json.dumps({**result, "step": STEP + 1}))
    export_weights(ExportRequest(tmp_path / "run", tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "No evaluation of these weights is on record" in card
    assert "metrics" not in card
    assert "| weights | not stated; state one before you publish them |" in card


@pytest.mark.parametrize(("decay", "ema"), [(0.9, True), (0.9, False), (0.0, False)])
def test_scores_are_those_of_the_weights_that_the_run_evaluated(lrnet, decay, ema):
    metadata = {"step": STEP, "ema": ema, "config": {"train": {"ema_decay": decay}}}
    step = lrnet[0] / "checkpoints" / str(STEP)
    for path in (lrnet[0], step):
        found = known_scores(path, metadata)
        assert (found is None) == (decay > 0 and not ema)
        assert found is None or found.top1 == 91.5


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """An imported ResNet-18 with ten classes."""
    folder = tmp_path_factory.mktemp("resnet")
    shapes = json.loads(np.load(torch_golden.FILE)["resnet18/shapes"].tobytes())
    drawn = torch_golden.weights(shapes)
    np.savez(folder / "a.npz", **drawn)
    typed = [
        "--network=resnet18", f"--from={folder / 'a.npz'}", f"--out={folder / 'imported'}",
        "--image_size=32", "--mean=0.5,0.4,0.3",
    ]  # fmt: skip
    import_weights.main(command_line.parse(typed, import_weights.define_flags))
    typed = [f"--run={folder / 'imported'}", f"--out={folder / 'out'}", "--format=safetensors"]
    export.main(command_line.parse(typed, export.define_flags))
    return folder / "out", drawn


def test_a_resnet_has_the_names_of_torchvision(resnet):
    folder, drawn = resnet
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    assert set(arrays) == {name for name in drawn if "num_batches_tracked" not in name}
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, drawn[name], err_msg=name)
    timm = json.loads((folder / "config.json").read_text())
    assert (timm["architecture"], timm["num_classes"]) == ("resnet18", 10)
    assert timm["pretrained_cfg"]["mean"] == pytest.approx([0.5, 0.4, 0.3])
    assert timm["pretrained_cfg"]["crop_pct"] == pytest.approx(32 / 37)
    card = (folder / "README.md").read_text()
    assert "| imported from | a.npz |" in card
    assert "torchvision.models.resnet18(num_classes=10)" in card
    assert "| images (not stated) | not stated |" in card
    assert not card.startswith("---\nlicense: unknown\ndatasets")


def test_torchvision_and_timm_load_the_folder(resnet):
    folder, _ = resnet
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    models = pytest.importorskip("torchvision").models
    images = torch_golden.photographs(torch_golden.SIDE)[:2]
    with np.load(torch_golden.FILE) as file:
        want = file["resnet18/logits"]
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    theirs = models.resnet18(num_classes=10)
    theirs.load_state_dict(state)
    for network in (theirs, timm.create_model(f"local-dir:{folder}", pretrained=True)):
        found = torch_golden.computed(network.eval(), images)["logits"]
        np.testing.assert_allclose(found, want, atol=1e-4)


def test_an_export_that_computes_something_else_is_refused(lrnet, tmp_path, monkeypatch):
    workdir, _ = lrnet
    write = weights_file.write_safetensors

    def wrong(path, arrays, texts):
        write(path, {**arrays, "params.head.bias": arrays["params.head.bias"] + 1}, texts)

    monkeypatch.setattr(weights_file, "write_safetensors", wrong)
    with pytest.raises(ConfigError, match=r"computes other logits .* nothing was exported"):
        export_weights(ExportRequest(workdir, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_the_size_of_a_batch_is_of_the_module(lrnet, tmp_path):
    typed = [f"--run={lrnet[0]}", f"--out={tmp_path / 'a'}", "--format=safetensors", "--images=2"]
    with pytest.raises(ConfigError, match="--images=2 is of a module, not of safetensors"):
        export.main(command_line.parse(typed, export.define_flags))
