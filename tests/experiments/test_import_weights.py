"""Weights from elsewhere as a checkpoint, by the command line."""

import json

import jax
import numpy as np
import pytest

import lrnet_jax
from experiments import import_weights
from experiments.cli import command_line
from experiments.cli.command_line import USERS_ERRORS
from experiments.run.imported import Given
from lrnet_jax.data.imagenet_names import synsets
from lrnet_jax.foreign.files import write_safetensors
from tests.lrnet_jax.foreign import torch_golden
from tests.lrnet_jax.foreign.test_convert import drawn, golden


def call(*typed):
    return import_weights.main(command_line.parse(typed, import_weights.define_flags))


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    write_safetensors(path, drawn("resnet18"), {})
    return path


def test_a_file_becomes_a_checkpoint_with_the_same_logits(resnet18, tmp_path, capsys):
    out = tmp_path / "out"
    call("--network=resnet18", f"--from={resnet18}", f"--out={out}")
    printed = capsys.readouterr().out
    for text in (
        "resnet18: 102 arrays used once each, 11.182 M parameters; "
        "20 counters of torch (num_batches_tracked) are left out",
        "224 x 224 out of 256, mean 123.7, 116.3, 103.5, std 58.4, 57.12, 57.38, from ImageNet",
        "10 classes, names: none; --class_names=FILE gives them",
    ):
        assert text in printed
    model, metadata = lrnet_jax.load_checkpoint(out)
    images = torch_golden.photographs(torch_golden.SIDE)[:2]
    found = jax.jit(model)(images)
    np.testing.assert_allclose(found, golden()["resnet18/logits"], atol=1e-4)
    assert (metadata["num_classes"], metadata["class_names"], metadata["resize"]) == (10, None, 256)
    assert metadata["imported_from"] == "resnet18.safetensors"


def test_how_images_are_prepared(resnet18, tmp_path, capsys):
    """Flags come before timm's config.json beside the weights."""
    folder = tmp_path / "timm"
    folder.mkdir()
    weights = folder / "model.safetensors"
    weights.symlink_to(resnet18)
    timm = {
        "input_size": [3, 160, 160], "crop_pct": 0.95, "mean": [0.5] * 3, "std": [0.25] * 3,
        "interpolation": "bilinear",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": timm}))
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcdefghij") + "\n")
    out = tmp_path / "out"
    call(
        "--network=resnet18", f"--from={weights}", f"--out={out}", f"--class_names={names}",
        "--std=0.2,0.2,0.2",
    )  # fmt: skip
    _, metadata = lrnet_jax.load_checkpoint(out)
    assert (metadata["image_size"], metadata["resize"]) == (160, 168)
    assert metadata["mean"] == [127.5] * 3
    assert metadata["std"] == [51.0] * 3
    assert metadata["class_names"] == list("abcdefghij")
    printed = capsys.readouterr().out
    assert "160 x 160 out of 168" in printed
    assert "(timm resizes bilinear, and images are resized bicubic here)" in printed

    (folder / "config.json").write_text("[]")
    with pytest.raises(USERS_ERRORS, match=r"is no configuration of timm .*; move the weights"):
        call("--network=resnet18", f"--from={weights}", f"--out={tmp_path / 'b'}")


def test_a_thousand_classes_are_those_of_imagenet():
    names, source = import_weights.chosen_names(None, 1000, Given())
    assert names == synsets()
    assert source.endswith("taken because there are 1000; --class_names=none for none")
    assert import_weights.chosen_names("none", 1000, Given())[0] is None


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "--network is missing; for example --network=resnet50"),
        (["--network=resnet19"], "--network=resnet19: no network .*; did you mean resnet18"),
        (["--network=resnet50"], r"the weights lack .* They are those of resnet18"),
        (["--network=resnet18", "--mean=1,2"], "--mean must be three numbers of 0 to 1, got 1,2"),
        (["--network=resnet18", "--std=a,b,c"], "--std must be three numbers of 0 to 1, got a,b,c"),
        (
            ["--network=resnet18", "--class_names=imagenet2012"],
            "1000 class names .* but the weights have 10 classes; give --class_names=FILE",
        ),
        (["--network=resnet18", "--resize=200"], "--resize=200 is less than the image size of 224"),
        (["--network=resnet18", "--class_names=nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_slips_are_answered_in_one_line_and_nothing_is_written(resnet18, tmp_path, typed, message):
    with pytest.raises(USERS_ERRORS, match=message) as raised:
        call(f"--from={resnet18}", f"--out={tmp_path / 'out'}", *typed)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_timm_writes(tmp_path, capsys):
    """Weights, preparation and class names are read; the flags are not needed."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet26", num_classes=3)
    timm.models.save_for_hf(
        model, tmp_path / "timm", model_config={"label_names": ["ant", "bee", "cat"]},
        safe_serialization=True,
    )  # fmt: skip
    call(
        "--network=resnet26", f"--from={tmp_path / 'timm' / 'model.safetensors'}",
        f"--out={tmp_path / 'out'}",
    )  # fmt: skip
    _, metadata = lrnet_jax.load_checkpoint(tmp_path / "out")
    given = timm.data.resolve_data_config(model=model)
    assert metadata["image_size"] == given["input_size"][-1]
    assert metadata["resize"] == int(given["input_size"][-1] / given["crop_pct"])
    assert metadata["mean"] == pytest.approx([255 * value for value in given["mean"]])
    assert metadata["std"] == pytest.approx([255 * value for value in given["std"]])
    assert metadata["class_names"] == ["ant", "bee", "cat"]
    assert f"from {tmp_path / 'timm' / 'config.json'}" in capsys.readouterr().out
