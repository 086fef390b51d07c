"""Evaluation on other images than the run's: a folder, some of the classes, another split."""

import contextlib
import csv
import io
import json
import re
from typing import ClassVar

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import lrnet_jax
from experiments import evaluate
from experiments.cli import command_line
from experiments.config import ConfigError
from experiments.run import attacks
from experiments.run.evaluated import change_data, open_checkpoint
from lrnet_jax.data import open_dataset
from lrnet_jax.data.augment import normalize
from lrnet_jax.data.in_memory import FASHION_CLASSES
from lrnet_jax.training.evaluation import evaluate as evaluate_batches
from tests.experiments.finished_run import STEP, checkpoint, finish
from tests.experiments.tiny_run import tiny

CLASSES = ("sandal", "bag", "coat")
EACH = 7  # images of a class; with three classes the tail of a batch is padded


def call(workdir, *typed):
    options = command_line.parse([f"--run={workdir}", *typed], evaluate.define_flags)
    return evaluate.main(options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run of the quickstart with random weights and no training: (workdir, network)."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    config = tiny(**{"train.ema_decay": "0"})
    model = lrnet_jax.create_from_variant(config.model, 10, nnx.Rngs(0))
    finish(workdir, config, 10.0)
    checkpoint(workdir, config, model)
    model.eval()
    return workdir, model


@pytest.fixture(scope="module")
def images():
    """{class: (EACH, 28, 28, 3) uint8} of the embedded images."""
    data = open_dataset("fashion_mnist_subset")
    batch = next(data.eval_batches(2000))
    return {
        name: batch["image"][batch["label"] == FASHION_CLASSES.index(name)][:EACH]
        for name in CLASSES
    }


def write_folder(folder, images, names):
    for name, pixels in zip(names, images.values(), strict=True):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(pixels):
            Image.fromarray(image).resize((32, 32)).save(folder / name / f"{number}.png")
    return ["--config.data.name=folder", f"--config.data.data_dir={folder}",
            "--config.data.eval_split=train", "--config.data.workers=0",
            "--batch_size=12"]  # fmt: skip


def shares_by_hand(folder, names, model, labels):
    """Probabilities (images, 3) among the three classes, and the labels, class by class."""
    pixels = [
        np.asarray(Image.open(path).convert("RGB").resize((32, 32)))[2:30, 2:30]
        for name in names
        for path in sorted((folder / name).iterdir())
    ]
    images = normalize(np.stack(pixels), (72.9,) * 3, (90.0,) * 3)
    logits = np.asarray(jax.jit(model)(images), np.float64)[:, labels]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return shares, np.repeat(np.arange(3), EACH)


def by_hand(folder, names, model):
    """Top-1 and loss among the three classes, image by image."""
    labels = [FASHION_CLASSES.index(name) for name in CLASSES]
    shares, truth = shares_by_hand(folder, names, model, labels)
    return 100 * np.mean(shares.argmax(1) == truth), -np.log(
        shares[range(len(truth)), truth]
    ).mean()


@pytest.mark.parametrize("names", [("Sandal", "bag", "coat"), ("5", "8", "4")])
def test_a_folder_with_some_of_the_classes(run, images, tmp_path, capsys, names):
    workdir, model = run
    typed = write_folder(tmp_path, images, names)
    call(workdir, *typed)
    printed = capsys.readouterr()
    record = json.loads(printed.out.splitlines()[-1])
    top1, loss = by_hand(tmp_path, names, model)
    assert (record["step"], record["count"]) == (STEP, 3 * EACH)
    assert record["top1"] == pytest.approx(top1)
    assert record["loss"] == pytest.approx(loss, rel=1e-5)
    notes = printed.err.splitlines()
    assert notes[0].endswith("3 of the network's 10; only they compete")
    assert notes[1] == "images are 28 x 28 out of 32, those of the training were 28 x 28 out of 28"


def test_classes_that_the_network_has_not_are_refused(run, images, tmp_path, capsys):
    typed = write_folder(tmp_path, images, ("sandal", "bag", "cats"))
    with pytest.raises(ConfigError, match=r"that the network has not: 'cats'; the network's are"):
        call(run[0], *typed)
    assert capsys.readouterr().out == ""


class Bar:
    """Stands for tqdm."""

    made: ClassVar = []

    def __init__(self, total, desc, **options):
        self.text, self.total, self.seen = desc, total, 0
        Bar.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, images):
        self.seen += images


def test_attacks_on_other_images_are_not_kept(run, images, tmp_path, capsys, monkeypatch):
    """The attack is among the classes of the folder, and its progress is shown."""
    monkeypatch.setattr(evaluate, "tqdm", Bar)
    Bar.made.clear()
    workdir, _ = run
    typed = write_folder(tmp_path, images, CLASSES)
    call(workdir, *typed, "--attack=targeted", "--epsilon=64", "--steps=3", "--step_size=30")
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    (attacked,) = record["attacked"]
    assert attacked["count"] == 3 * EACH
    assert attacked["loss"] > record["loss"]
    assert attacks.kept(workdir) == []
    assert [bar.text for bar in Bar.made] == ["evaluation", "targeted, eps 64, 3 steps"]
    assert all(bar.total == bar.seen == 3 * EACH for bar in Bar.made)


def test_another_size_and_what_may_not_change(run):
    changed = open_checkpoint(str(run[0]), changes=[("data.flip", "true")])
    assert changed.notes == ()
    with pytest.raises(
        ConfigError, match=r"--config\.seed: an evaluation can change the data only"
    ):
        open_checkpoint(str(run[0]), changes=[("seed", "1")])
    with pytest.raises(ConfigError, match=r"config\.data: .*no use for eval_split"):
        open_checkpoint(str(run[0]), changes=[("data.eval_split", "test")])
    with pytest.raises(ConfigError, match="are the same; leave one out"):
        call(run[0], "--data_dir=a", "--config.data.data_dir=b")


def test_another_prepared_set_needs_no_split_for_training():
    config = tiny(**{"data.shift": "2"})
    changed = change_data(
        config, [("data.name", "imagenet_v2"), ("data.eval_split", "test[:10]")], 28
    ).data
    assert (changed.train_split, changed.eval_split) == ("test[:10]", "test[:10]")
    assert (changed.image_size, changed.shift) == (28, 0)
    folder = change_data(config, [("data.name", "folder"), ("data.eval_split", "test")], 28).data
    assert folder.train_split is None
    same = change_data(config, [("data.image_size", "32")], 28).data
    assert (same.name, same.image_size, same.shift) == ("fashion_mnist_subset", 32, 2)


@pytest.mark.parametrize("epsilon", ["300", "255.5", "-1"])
def test_an_epsilon_beyond_white_is_refused(run, epsilon):
    with pytest.raises(ConfigError, match=rf"--epsilon={epsilon}.* range \[0.0, 255.0\]"):
        call(run[0], "--attack=untargeted", f"--epsilon={epsilon}")


def test_progress_counts_images_and_not_padding(run):
    opened = open_checkpoint(str(run[0]))
    seen = []
    step = lambda variables, batch: jax.tree.map(  # noqa: E731
        lambda x: np.int32(1), evaluate.steps.Sums(1, 1, 1, 1)
    )
    batches = opened.dataset.eval_batches(600)
    evaluate_batches(step, opened.variables, batches, seen.append)
    assert seen == [600, 600, 600, 200]


@pytest.fixture(scope="module")
def report(run, images, tmp_path_factory):
    """A report: its folder, probabilities by hand (21, 3), labels, and what was printed last."""
    folder = tmp_path_factory.mktemp("report")
    # The class folders in the order of their names, as data sets have them.
    names = sorted(CLASSES)
    typed = write_folder(folder / "images", {name: images[name] for name in names}, names)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        call(run[0], *typed, f"--report={folder / 'out'}")
    labels = [FASHION_CLASSES.index(name) for name in names]
    shares, truth = shares_by_hand(folder / "images", names, run[1], labels)
    return folder / "out", shares, truth, json.loads(printed.getvalue().splitlines()[-1])


def rows(path):
    with path.open() as file:
        return list(csv.reader(file))


def test_the_numbers_of_a_report(report):
    folder, shares, truth, record = report
    right = shares.argmax(1) == truth
    assert record["top1"] == pytest.approx(100 * right.mean())
    assert record["top5"] == 100
    assert record["loss"] == pytest.approx(-np.log(shares[range(21), truth]).mean(), rel=1e-5)
    error = 0.0
    for low in range(15):
        inside = (shares.max(1) >= low / 15) & (shares.max(1) < (low + 1) / 15)
        error += abs(np.sum(right[inside]) - np.sum(shares.max(1)[inside])) / 21
    assert record["calibration_error"] == pytest.approx(error, rel=1e-4)
    assert json.loads((folder / "summary.json").read_text()).items() >= record.items()


def test_the_tables_of_a_report(report):
    folder, shares, truth, _ = report
    guess = shares.argmax(1)
    names = sorted(CLASSES)
    matrix = rows(folder / "confusion.csv")
    assert matrix[0] == ["label / prediction", *names]
    for label, row in enumerate(matrix[1:]):
        assert row[0] == names[label]
        counts = [np.sum((truth == label) & (guess == other)) for other in range(3)]
        assert list(map(int, row[1:])) == counts
    for label, row in enumerate(rows(folder / "classes.csv")[1:]):
        assert row[:3] == [str(label), names[label], str(EACH)]
        assert float(row[4]) == pytest.approx(np.mean(guess[truth == label] == label), abs=1e-6)
    found = {row[0]: row[1:] for row in rows(folder / "predictions.csv")[1:]}
    assert len(found) == 21
    for number in range(21):
        name = names[truth[number]]
        (row,) = [v for k, v in found.items() if f"{name}/{number % EACH}.png (image" in k]
        assert row[:2] == [name, names[guess[number]]]
        assert float(row[2]) == pytest.approx(shares[number].max(), abs=1e-5)


def test_the_page_shows_the_surest_mistakes(report):
    folder, shares, truth, _ = report
    page = (folder / "report.html").read_text()
    guess, names = shares.argmax(1), sorted(CLASSES)
    wrong = sorted(np.flatnonzero(guess != truth), key=lambda n: -shares[n].max())
    titles = re.findall(r"<h3>(.*?) \(image", page)
    assert [title.split("images/")[1] for title in titles] == [
        f"{names[truth[n]]}/{n % EACH}.png" for n in wrong[: len(titles)]
    ]
    assert len(titles) == min(24, len(wrong)) > 3
    assert "expected calibration error" in page
    assert re.findall(r"<script|https?://", page) == []
    for name in ("confusion.png", "calibration.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"


def test_reassessed_labels(run, images, tmp_path, capsys):
    """Labels are the network's; images without a label do not count."""
    workdir, model = run
    names = sorted(CLASSES)
    typed = write_folder(tmp_path / "images", {name: images[name] for name in names}, names)
    labels = [FASHION_CLASSES.index(name) for name in names]
    shares, _ = shares_by_hand(tmp_path / "images", names, model, labels)
    guesses = [labels[guess] for guess in shares.argmax(1)]
    for number, path in enumerate(sorted((tmp_path / "images").rglob("*.png"))):
        path.rename(path.with_name(f"ILSVRC2012_val_{number + 1:08d}.JPEG"))
    # Right for 0 to 4, by their second label; wrong for 5 to 9; no label for the others.
    real = [
        [3, guess] if n < 5 else [(guess + 1) % 10] if n < 10 else []
        for n, guess in enumerate(guesses)
    ]
    file = tmp_path / "real.json"
    file.write_text(json.dumps(real))
    call(workdir, *typed, f"--real_labels={file}", f"--report={tmp_path / 'report'}")
    printed = capsys.readouterr().out
    assert "ReaL: top-1 50.00 % on 10 images with labels" in printed
    record = json.loads(printed.splitlines()[-1])
    assert (record["count"], record["real_top1"], record["real_count"]) == (21, 50.0, 10)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "top-1 on reassessed labels (ReaL)" in page
    assert "50.00 % of 10 images" in page
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["real_count"] == 10
    file.write_text(json.dumps(real[:20]))
    with pytest.raises(ConfigError, match="labels of 20 images, and number 21 is evaluated"):
        call(workdir, *typed, f"--real_labels={file}")
    with pytest.raises(ConfigError, match=r"validation images, .* got images without files"):
        call(workdir, f"--real_labels={file}")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "must be a list with a list"), ("[1]", "must be a list"), ("[", "cannot be read")],
)
def test_files_that_hold_no_labels(run, tmp_path, content, message):
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        call(run[0], f"--real_labels={tmp_path / 'real.json'}")
