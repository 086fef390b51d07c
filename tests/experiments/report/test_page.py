"""Pages: well formed, self-contained, and what a browser shows of them."""

import base64
import io
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from experiments.config import ConfigError
from experiments.report import page
from experiments.report.table import Table
from tests.experiments.report import markup

PINK = (255, 0, 200)
BAR = (0x33, 0x66, 0x9A)


def solid(side, colour=PINK):
    return np.full((side, side, 3), colour, np.uint8)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "page.html"
    with page.open_page(path, "A & B", "Two <images>.") as opened:
        opened.write(page.CARDS_BEGIN)
        rows = [("shoe", 0.75), ("<bag>", 0.25)]
        opened.write(page.card("a.png", page.picture(solid(28), "small"), page.bars(rows)))
        opened.write(page.card("b.png", page.picture(solid(64), 'a "large" one'), note="A note."))
        opened.write(page.CARDS_END)
        opened.write(page.heading("Counts", "What they are."))
        opened.write(page.table(Table(("class", "count"), (("shoe", "3"), ("<bag>", "4")))))
    return path


def test_a_page_is_well_formed_and_self_contained(written):
    read = markup.read(written)
    assert [element for element, _ in read.elements].count("article") == 2
    for text in ("A & B", "Two <images>.", "shoe", "<bag>", "75.0 %", "A note.", "What they are."):
        assert text in read.texts, text
    bars = [attributes["style"] for attributes in read.all("i")]
    assert bars == ["width: 75.00%", "width: 25.00%"]
    assert not written.with_name("page.html.tmp").exists()


def test_pictures_are_inside(written):
    small, large = markup.read(written).all("img")
    assert (small["alt"], large["alt"]) == ("small", 'a "large" one')
    for attributes, side in ((small, 28), (large, 64)):
        encoded = base64.b64decode(attributes["src"].partition(",")[2])
        pixels = np.asarray(Image.open(io.BytesIO(encoded)), int)
        assert pixels.shape == (side, side, 3)
        assert np.abs(pixels - PINK).max() < 4
        assert (attributes["width"], attributes["height"]) == (str(side), str(side))


def test_nothing_is_left_of_a_page_that_fails(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")

    def fail():
        with page.open_page(path, "A", "B") as opened:
            opened.write("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "old"


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "none" / "page.html"
    with (
        pytest.raises(ConfigError, match=r"page.html cannot be written: No such file"),
        page.open_page(path, "A", "B"),
    ):
        pass


def test_a_browser_shows_pictures_and_bars(written, tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    shot = tmp_path / "shot.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=800,900"]
    subprocess.run(
        [*command, f"--screenshot={shot}", written.as_uri()], check=True, capture_output=True
    )
    seen = np.asarray(Image.open(shot).convert("RGB"), int)
    pink = np.abs(seen - PINK).max(-1) < 8
    columns = np.flatnonzero(pink.sum(0) > 100)  # two squares, side by side
    gaps = np.flatnonzero(np.diff(columns) > 1)
    assert len(gaps) == 1
    widths = gaps[0] + 1, len(columns) - gaps[0] - 1
    assert widths == (224, 224)  # enlarged to 14 rem
    lengths = (np.abs(seen - BAR).max(-1) < 8).sum(1)
    longest = np.unique(lengths[lengths > 20])  # rows within a bar, without its round ends
    assert longest[-1] == pytest.approx(3 * longest[longest < 100].max(), abs=3)
