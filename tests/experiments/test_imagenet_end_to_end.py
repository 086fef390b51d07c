"""ImageNet from its tars to an evaluation: prepare, train LR-Net-50, kill, resume, evaluate."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.evaluate import evaluate_checkpoint, open_checkpoint
from experiments.prepare.imagenet_builder import prepare
from experiments.prepare.imagenet_tars import Counts
from lrnet_jax.training.checkpoints import FOLDER
from lrnet_jax.training.metric_writers import METRICS
from tests.lrnet_jax.data import miniature

pytestmark = pytest.mark.slow
STEPS = 9


@pytest.fixture(
    scope="module",
    params=[
        "committed",
        pytest.param(
            "built",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("tensorflow") is None, reason="needs the extra `prepare`"
            ),
        ),
    ],
)
def data_dir(request, tmp_path_factory):
    """A folder with the data set "miniature"; under its own name its size would be refused."""
    folder = tmp_path_factory.mktemp("data")
    if request.param == "committed":
        miniature.unpack(folder)
        folder = folder / "tfrecord"
    else:
        tars = tmp_path_factory.mktemp("tars")
        miniature.write_tars(tars)
        counts = Counts(len(miniature.SYNSETS), miniature.TRAIN, miniature.VALIDATION)
        prepare(tars, folder, "array_record", counts=counts, num_shards=2)
    (folder / "imagenet2012").rename(folder / "miniature")
    return folder


def start(workdir, data_dir):
    """The main job as a user types it, a block a stage, on images of 64 x 64 and batches of 4."""
    fields = {
        "model.batch_norm_images": 4,
        "model.dtype": "float32",
        "data.name": "miniature",
        "data.data_dir": data_dir,
        "data.image_size": 64,
        "data.workers": 1,
        "optim.learning_rate": 0.0001,  # a batch of 4 diverges at more
        "train.batch_size": 4,
        "train.eval_batch_size": 4,
        "train.epochs": STEPS * 4 / miniature.TRAIN,
        "train.eval_every_epochs": 0,
        "train.log_every": 1,
        "train.checkpoint_every": 2,
    }
    command = [sys.executable, "-m", "experiments.train", "--config=lrnet50"]
    command += [f"--workdir={workdir}"]
    command += ["--config.model.depths=1,1,1,1"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    environment = os.environ | {
        "XLA_FLAGS": "",  # one device
        # The three processes of this test compile the same program.
        "JAX_COMPILATION_CACHE_DIR": str(data_dir / "compiled"),
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return output


def children(pid):
    return [
        int(folder.name)
        for folder in pathlib.Path("/proc").glob("[0-9]*")
        if (folder / "stat").read_text().rpartition(")")[2].split()[1] == str(pid)
    ]


def losses(workdir):
    records = map(json.loads, (workdir / METRICS).read_text().splitlines())
    return [(record["step"], record["loss"]) for record in records if record["kind"] == "train"]


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="needs /proc")
def test_prepare_train_kill_resume_evaluate(data_dir, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = finish(start(whole, data_dir))
    assert f"M parameters) on miniature (18 + 10 images), {STEPS} steps of 4" in output
    result = json.loads((whole / "result.json").read_text())
    assert result["count"] == miniature.VALIDATION
    assert [step for step, _ in losses(whole)] == list(range(1, STEPS + 1))

    process = start(killed, data_dir)
    with process:
        while not list((killed / FOLDER).glob("[0-9]*")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert workers
    assert not (killed / "result.json").exists()
    limit = time.monotonic() + 10
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < limit, "workers outlive their parent"
        time.sleep(0.05)

    assert "resumed at step" in finish(start(killed, data_dir))
    assert losses(killed) == losses(whole)
    assert json.loads((killed / "result.json").read_text()) == result
    again = evaluate_checkpoint(open_checkpoint(str(killed), data_dir=str(data_dir)))
    # Here on four devices: the same sums in another order.
    assert again.count == result["count"]
    assert again.top1 == result["top1"]
    assert again.loss == pytest.approx(result["loss"], rel=1e-4)
