"""What a user may get wrong about the images: one line, exit code 2, nothing written."""

import shutil
import sys

import pytest

from experiments import train
from experiments.cli import command_line
from experiments.run.workdir import is_new
from tests.experiments.tiny_run import TINY
from tests.lrnet_jax.data.image_folders import three_classes, write

FOLDER = (
    "--config.data.name=folder",
    "--config.data.data_dir={images}",
    "--config.data.image_size=8",
)


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Runs `experiments.train` in this process: its exit code, and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # the command sets its own
    monkeypatch.setattr(train, "survive_closed_pipes", lambda: None)  # pytest has no pipes
    write(tmp_path / "images", three_classes(5, "train/") | three_classes(3, "val/"))
    usual = TINY | {"train.eval_batch_size": "4", "data.workers": "0", "train.epochs": "1"}

    def start(*arguments):
        chosen = [argument.format(images=tmp_path / "images") for argument in arguments]
        given = {argument.partition("=")[0] for argument in chosen}
        fields = {f"--config.{path}": text for path, text in usual.items()}
        fields |= {"--config": "quickstart", "--workdir": str(tmp_path / "run")}
        chosen += [f"{flag}={text}" for flag, text in fields.items() if flag not in given]
        monkeypatch.setattr(sys, "argv", ["train", *chosen])
        with pytest.raises(SystemExit) as raised:
            command_line.run(train.main, train.define_flags)
        return raised.value.code, capsys.readouterr()

    return start


@pytest.fixture
def run(start, tmp_path):
    """The one line of a run that is refused before it writes anything."""

    def refused(*arguments):
        before = set(tmp_path.rglob("*"))
        code, printed = start(*arguments)
        assert code == 2
        assert set(tmp_path.rglob("*")) == before
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        return line

    return refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--config.data.name=fashion_mnist_subst",),
            "no data set is named 'fashion_mnist_subst'; did you mean fashion_mnist_subset?",
        ),
        (("--config.data.name=floder",), "no data set is named 'floder'; did you mean folder?"),
        (
            ("--config.data.name=imagenet2021",),
            "no data set is named 'imagenet2021'; did you mean imagenet2012?",
        ),
        (
            ("--config.model.implementation=palas",),
            "implementation must be None or one of reference, xla",
        ),
        (("--config.model.implementation=palas",), "got 'palas'; did you mean pallas?"),
        (
            ("--optim.learning_rate=0.1",),
            "Unknown command line flag 'optim.learning_rate'; did you mean "
            "--config.optim.learning_rate?",
        ),
        (("--learning_rate=0.1",), "did you mean --config.optim.learning_rate?"),
        (("--config.seed=1", "--config.seed=2"), "--config.seed is given twice, as '1' and '2'"),
        (("--workdir=a", "--workdir=b"), "flag --workdir=b: already defined as a"),
        (
            (*FOLDER, "--config.train.batch_size=16"),
            "train.batch_size 16 is larger than the data set, which has 15 training images",
        ),
        (FOLDER[:1], "config.data: the data set 'folder' needs data_dir"),
        ((*FOLDER, "--config.data.holdout=1"), "data.holdout must be in [0, 1), got 1.0"),
        (("--config.data.holdout=0.1",), "'fashion_mnist_subset' has no use for holdout 0.1"),
        ((*FOLDER, "--workdir=/proc/run"), "cannot make --workdir=/proc/run: No such file or"),
    ],
)
def test_one_line(run, arguments, message):
    assert message in run(*arguments)


def remove(pattern):
    def change(images):
        for path in images.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("train/cat/*"), "train has class folders without images: cat; add images"),
        (remove("val/c*/*"), "val has class folders without images: cat, cup; add images"),
        (remove("*/c*"), "train has one class only, 'rocket'; images belong in a folder for each"),
        (remove("val"), "has no split to evaluate on: no folder val, validation, test beside tr"),
        (remove("val/cup"), "val lacks classes that"),
        (remove("train/cup"), "train lacks classes that"),
        (remove("../images"), "is no folder"),
    ],
)
def test_folders_that_are_no_data_set(run, tmp_path, change, message):
    change(tmp_path / "images")
    assert message in run(*FOLDER)


def test_an_unreadable_image_ends_the_run_before_its_first_step(start, tmp_path):
    """The workdir is not taken: the same command trains once the image is mended."""
    spoiled = tmp_path / "images/train/cup/cup_1.png"
    whole = spoiled.read_bytes()
    spoiled.write_bytes(whole[:40])
    code, printed = start(*FOLDER)
    assert code == 2
    *_, line = printed.err.splitlines()  # after what every run tells
    assert line.startswith(f"error: {spoiled} (image ")
    assert "mend or remove it, or set tolerate_bad_images=1 to train without it" in line
    assert is_new(tmp_path / "run")
