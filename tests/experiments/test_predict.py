"""Predictions from the command line: what is printed, what the page has, bad files, exit codes."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import lrnet_jax
from experiments import predict
from experiments.cli import command_line
from experiments.config import ConfigError
from lrnet_jax.data import BadImageError
from lrnet_jax.functional import split
from lrnet_jax.preprocessing import Preprocessing
from lrnet_jax.training.checkpoint_saver import write_model
from tests.experiments.report import markup

VARIANT = lrnet_jax.Variant(
    depths=(1,), width=4, stage_channels=8, stem_channels=4, stem_kernel_size=3, kernel_size=3,
    channels_per_group=2, stem_channels_per_group=2, prior_hidden=4, implementation="reference",
)  # fmt: skip
NAMES = ("cat", "dog", "cow & calf", "hen", "pig", "ox")
FILES = ("a.png", "b.png", "c.jpg")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint for inference."""
    folder = tmp_path_factory.mktemp("run") / "export"
    model = lrnet_jax.create_from_variant(VARIANT, len(NAMES), nnx.Rngs(0))
    _, params, batch_stats = split(model)
    metadata = {
        "network": "tiny", "variant": json.loads(json.dumps(dataclasses.asdict(VARIANT))),
        "num_classes": len(NAMES), "class_names": NAMES, "step": 3, "config": {},
        **dataclasses.asdict(Preprocessing(16, 18, (120.0, 110.0, 100.0), (60.0, 61.0, 62.0))),
    }  # fmt: skip
    write_model(folder, {"params": params, "batch_stats": batch_stats}, metadata)
    return str(folder)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Three images and the working directory above them."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in FILES:
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / name)
    return folder


def main(*arguments):
    return predict.main(command_line.parse(arguments, predict.define_flags))


def test_a_line_for_each_image(run, photos, capsys):
    assert main(f"--run={run}", "photos", "--top=2", "--batch_size=2") == 0
    lines = capsys.readouterr().out.splitlines()
    predicted = lrnet_jax.load_classifier(run).predict([photos / name for name in FILES], top=2)
    assert len(lines) == 3
    for line, name, guesses in zip(lines, FILES, predicted, strict=True):
        for part in (f"photos/{name}", *(guess.name for guess in guesses)):
            assert part in line
        assert f"{100 * guesses[0].probability:.1f} %" in line


def test_csv_and_json_agree(run, photos, capsys):
    main(f"--run={run}", "--csv", "photos")
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    main(f"--run={run}", "--json", "photos")
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["image"] for record in records] == [f"photos/{name}" for name in FILES]
    from_json = [
        (record["image"], guess["name"], f"{guess['probability']:.6f}")
        for record in records
        for guess in record["guesses"]
    ]
    assert [(row["image"], row["name"], row["probability"]) for row in rows] == from_json
    assert len(rows) == 3 * 5


def test_bad_files_are_named_and_skipped(run, photos, capsys):
    (photos / "bad.jpg").write_text("no image")
    page = photos / "page.html"
    assert main(f"--run={run}", "photos", "none.png", f"--html={page}") == 3
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    bad, missing = printed.err.splitlines()
    assert bad.startswith("skipped: image photos/bad.jpg cannot be read: cannot identify")
    assert missing == "skipped: image none.png cannot be read: there is no such file"
    read = markup.read(page)
    assert "Not read" in read.texts
    assert bad.removeprefix("skipped: ") in read.texts
    assert len(read.all("img")) == 3


def test_only_bad_files_are_an_error(run, photos):
    (photos / "bad.jpg").write_text("no image")
    with pytest.raises(BadImageError, match=r"image photos/bad.jpg cannot be read"):
        main(f"--run={run}", "photos/bad.jpg", "--html=page.html")
    with pytest.raises(ConfigError, match="none of 2 files was read"):
        main(f"--run={run}", "photos/bad.jpg", "none.png", "--html=page.html")
    assert not list(photos.parent.glob("page.html*"))


def test_a_page_with_maps(run, photos):
    pytest.importorskip("matplotlib")
    assert main(f"--run={run}", "photos/a.png", "--html=page.html", "--maps", "--top=6") == 0
    read = markup.read(photos.parent / "page.html")
    photo, maps, priors = (attributes["alt"] for attributes in read.all("img"))
    assert photo.startswith("photos/a.png, taken for ")
    assert maps == "keys and queries of each stage for photos/a.png"
    assert priors == "geometric priors of each stage"
    for name in NAMES:
        assert name in read.texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "--run is missing"),
        (["--run=x"], "no image is given; name files or folders"),
        (["--run=x", "photos", "--csv", "--json"], "--csv and --json exclude each other"),
        (["--run=x", "photos", "--maps"], "--maps is for a page; add --html=FILE"),
        (["--run=x", "photos", "--top=0"], "--top=0: 0 is not a positive integer"),
        (["--run=x", "."], r"folder \. has no images"),
    ],
)
def test_slips_are_answered_before_anything_is_loaded(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        main(*arguments)
