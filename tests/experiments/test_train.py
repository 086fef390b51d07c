"""Training from end to end, with a network that takes seconds."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import lrnet_jax
from experiments import config as configs
from experiments.cli import command_line
from experiments.config import ConfigError
from experiments.evaluate import evaluate_checkpoint, open_checkpoint
from experiments.recipes import RECIPES
from experiments.run import opening
from experiments.run.results import FILE as RESULT
from experiments.train import define_flags, train
from lrnet_jax.data import fashion_mnist_subset
from lrnet_jax.training import checkpoints
from lrnet_jax.training.metric_writers import METRICS
from tests.experiments.tiny_run import assert_same_runs, metrics, saved, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: (workdir, result)."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    return workdir, train(tiny(), workdir)


def test_a_run_leaves_what_it_should(run):
    workdir, result = run
    assert [record["step"] for record in metrics(workdir)] == list(range(1, 9))
    assert set(metrics(workdir)[0]) == {
        "kind", "step", "loss", "accuracy", "gradient_norm", "learning_rate",
    }  # fmt: skip
    record = json.loads((workdir / RESULT).read_text())
    assert list(record) == ["step", "top1", "top5", "loss", "count"]
    assert record == dataclasses.asdict(result)
    assert result.count == 2000
    assert metrics(workdir, "eval") == [{"kind": "eval", **record}]
    assert configs.load(workdir / configs.FILE) == tiny()
    assert checkpoints.find(workdir).folder.name == "8"


def test_a_run_reports_its_speed(run):
    """With every report: after steps 3, 6 and 8. A CPU does not count its memory."""
    found = metrics(run[0], "speed")
    assert [record["step"] for record in found] == [3, 6, 8]
    for record in found:
        assert set(record) == {"kind", "step", "images_per_second", "input_seconds"}
        assert record["images_per_second"] > 0
        assert record["input_seconds"] >= 0


def test_evaluate_reproduces_the_final_numbers_exactly(run):
    workdir, result = run
    assert evaluate_checkpoint(open_checkpoint(str(workdir))) == result
    last = evaluate_checkpoint(open_checkpoint(str(workdir), ema=False))
    assert last.count == result.count
    assert last.loss != result.loss


def test_a_classifier_scores_what_the_run_did(run):
    """Raw images and nothing else: preprocessing and names come with the checkpoint."""
    workdir, result = run
    dataset = fashion_mnist_subset()
    classifier = lrnet_jax.load_classifier(workdir)
    assert classifier.class_names == dataset.class_names
    probabilities = classifier.probabilities(dataset.eval_images, batch_size=512)
    right = probabilities[np.arange(2000), dataset.eval_labels]
    top1 = 100 * float(np.mean(probabilities.argmax(1) == dataset.eval_labels))
    assert top1 == pytest.approx(result.top1, abs=0.051)  # one image whose classes are level
    assert -np.log(right).mean() == pytest.approx(result.loss, rel=1e-5)


def test_an_interrupted_run_ends_as_the_uninterrupted_one(run, tmp_path, monkeypatch):
    """It stops two steps past its checkpoint; parameters and records do not differ."""
    whole, result = run
    workdir = tmp_path / "stopped"

    class PowerCutError(Exception):
        pass

    from experiments import train as module

    def cut(batches, put):
        for step, batch in enumerate(batches, start=1):
            if step == 7:
                raise PowerCutError
            yield put(batch)

    with monkeypatch.context() as patch:
        patch.setattr(module, "prefetch", lambda *a: contextlib.closing(cut(*a)))
        with pytest.raises(PowerCutError):
            train(tiny(), workdir)
    assert checkpoints.find(workdir).folder.name == "4"
    assert train(tiny(), workdir) == result
    assert_same_runs(whole, workdir)


def test_a_run_goes_on_with_another_choice_of_what_is_computed_again(run, tmp_path, capsys):
    """A run of before a recipe chose `blocks` is resumed by the same command, and says so."""
    whole, result = run
    workdir = tmp_path / "older"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    (workdir / "result.json").unlink()
    found = train(tiny(**{"model.remat": "blocks"}), workdir)
    printed = capsys.readouterr()
    assert "resumed at step 4" in printed.err
    assert "it goes on with other settings: model.remat: none -> blocks\n" in printed.err
    assert configs.load(workdir / configs.FILE).model.remat == "blocks"
    assert found.loss == pytest.approx(result.loss, rel=1e-5)
    arrays = saved(workdir)
    for path, expected in saved(whole).items():
        np.testing.assert_allclose(arrays[path], expected, rtol=1e-4, atol=1e-6, err_msg=path)


def test_a_finished_run_is_reported_again_not_trained_again(run, capsys):
    workdir, result = run
    before = (workdir / METRICS).read_text()
    assert train(tiny(), workdir) == result
    assert (workdir / METRICS).read_text() == before
    output = capsys.readouterr().out
    assert f"{workdir} is finished" in output
    assert f"final: top-1 {result.top1:.2f} %" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch_size": "6"}, "train.batch_size 6 is not divisible by 4 devices; use .*=4"),
        ({"train.eval_batch_size": "3"}, "train.eval_batch_size 3 is not divisible by 4 devices"),
        ({"model.batch_norm_images": "8"}, "2 images a device .* use --config.train.batch_size=32"),
        (
            {"train.batch_size": "12", "data.cutmix_alpha": "1"},
            "3 images a device .* cannot be mixed in pairs; use --config.train.batch_size=16",
        ),
        ({"train.accumulate": "4"}, "2 images a device .* by train.accumulate 4; use .*late=2"),
        (
            {"train.batch_size": "16", "train.accumulate": "2", "model.batch_norm_images": "4"},
            "2 images a device and part .* use --config.train.batch_size=32",
        ),
        ({"train.epochs": "0.0001"}, "is less than one step"),
        ({"optim.multipliers": "stm=0"}, "optim.multipliers: 'stm' matches no parameter; their"),
        ({"data.image_size": "0"}, "data.image_size must be at least 1, got 0"),
    ],
)
def test_what_cannot_run_here_is_refused_before_anything_is_written(tmp_path, changes, message):
    workdir = tmp_path / "run"
    with pytest.raises(ConfigError, match=message) as raised:
        train(tiny(**changes), workdir)
    assert "\n" not in str(raised.value)
    assert not workdir.exists()


def test_a_workdir_of_another_run_is_left_alone(run):
    workdir, _ = run
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"another configuration \(seed: 0 -> 1\)"):
        train(dataclasses.replace(tiny(), seed=1), workdir)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(ConfigError, match="is not empty and holds no run of lrnet_jax"):
        train(tiny(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def call(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("train", ["--config=quikstart"], "did you mean quickstart or quickstart_conv?"),
        ("train", ["--config=quickstart", "--config.optim.lr=1"], "no field config.optim.lr"),
        ("train", ["--config=quickstart", "--wrkdir=x"], "Did you mean: workdir"),
        ("evaluate", ["--checkpoint=nowhere"], "nowhere is not a directory"),
    ],
)
def test_the_command_line_ends_slips_in_one_line(module, arguments, message):
    done = call(module, *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stdout == ""


def test_the_first_line_is_about_an_idle_gpu(tmp_path, monkeypatch):
    """The GPU is simulated; the run ends before it begins, because its images are missing."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.65.06, 9.0, 81559 MiB'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    done = call("train", "--config=lrnet50", f"--config.data.data_dir={tmp_path}")
    assert done.stdout.splitlines()[0] == (
        "warning: this computes on the CPU, and NVIDIA H100 80GB HBM3 is idle; to use it: make env "
        "ACCELERATOR=cuda13"
    )


def test_imagenet_that_is_not_here(tmp_path):
    """The error names the files that are needed, the folder that was searched, what to type."""
    done = call(
        "train", "--config=lrnet50", f"--config.data.data_dir={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 2
    for text in (
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        str(tmp_path),
        "-m experiments.prepare_imagenet --manual_dir=DIR",
    ):
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--help", "--config=help"])
def test_help_is_printed(flag):
    done = call("train", flag)
    assert (done.returncode, done.stderr) == (0, "")
    expected = {
        "--help": [f"  --{name}" for name in command_line.parse([], define_flags)],
        "--config=help": [*RECIPES, "--config.optim.learning_rate=0.4"],
    }
    for text in expected[flag]:
        assert text.replace("--distributed", "--[no]distributed") in done.stdout


@pytest.mark.parametrize("flag", ["--help", "--config=help"])
def test_help_into_head(flag):
    program = f"{sys.executable} -m experiments.train {flag} | head -1; echo ${{PIPESTATUS[@]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.endswith("\n0 0\n")


def test_a_run_prints_what_differs_from_its_recipe(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(opening.Session, "batches", lambda self: iter(()))
    with pytest.raises(StopIteration):
        train(tiny(seed="3"), tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    first = lines.index(
        f"recipe quickstart with 14 changed fields; all fields are in {tmp_path}/run/config.json"
    )
    assert lines[first + 1 : first + 15] == [
        f"  --config.{path}={text}"
        for path, text in {
            "model.depths": 1, "model.width": 4, "model.stage_channels": 8,
            "model.stem_channels": 4, "model.kernel_size": 3,
            "model.implementation": "reference", "seed": 3, "train.batch_size": 8,
            "train.eval_batch_size": 600, "train.epochs": 0.0064, "train.eval_every_epochs": 0.0,
            "train.ema_decay": 0.7, "train.log_every": 3, "train.checkpoint_every": 4,
        }.items()
    ]  # fmt: skip
