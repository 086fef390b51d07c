"""Pages of HTML that are one file each: pictures are inside, and nothing is loaded or run.

    with open_page(path, "Predictions", "runs/quickstart") as page:
        page.write(card("shoe.png", picture(pixels, "shoe.png"), bars([("sneaker", 0.97)])))

A page is written as it grows, and has its name only when it is whole.
"""

import base64
import contextlib
import html
import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import numpy as np
from PIL import Image

from experiments.config import ConfigError
from experiments.report.table import Table
from lrnet_jax.training.atomic import spare_name

SMALL = 64  # pixels; smaller pictures are stored without loss and enlarged without blur
QUALITY = 88  # of JPEG

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfa; --ink: #1c1c1a; --soft: #6b6b66;
  --line: #dddcd6; --bar: #33669a; --track: #ecebe6; --wrong: #b2442f; }
@media (prefers-color-scheme: dark) { :root { --paper: #181917; --ink: #ececea; --soft: #a0a09a;
  --line: #3a3b37; --bar: #6ea3d8; --track: #2a2b28; --wrong: #e07a63; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p { max-width: 46rem; } .lead, .note { color: var(--soft); } .lead { margin: .25rem 0 2rem; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr));
  margin: 0; padding: 0; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .75rem; min-width: 0; }
.card > img { display: block; width: 100%; margin: 0 auto .75rem; }
.card > img:not(.figure) { max-width: 14rem; }
.card h3 { font-size: .85rem; font-weight: 600; margin: 0 0 .5rem; overflow-wrap: anywhere; }
.card.wide { grid-column: 1 / -1; }
@media (min-width: 50rem) { .card.wide { display: grid; gap: 0 1.25rem; align-items: start;
  grid-template-columns: 11rem 14rem 1fr; } .card.wide > h3 { grid-column: 1 / -1; } }
img { max-width: 100%; height: auto; } img.small { image-rendering: pixelated; }
.figure { background: #fff; border-radius: 4px; padding: .5rem; }
.bars { list-style: none; margin: 0; padding: 0; font-size: .85rem; }
.bars li { display: grid; grid-template-columns: 1fr auto; gap: 0 .75rem; margin-bottom: .35rem; }
.bars .number { font-variant-numeric: tabular-nums; color: var(--soft); }
.bars .track { grid-column: 1 / -1; height: 5px; border-radius: 3px; background: var(--track); }
.bars .track i { display: block; height: 100%; border-radius: 3px; background: var(--bar); }
.bars li.marked .track i { background: var(--wrong); }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .75rem .3rem 0; text-align: left; }
"""
CARDS_BEGIN, CARDS_END = '<div class="cards">', "</div>"  # around cards, which form a grid
# The browser then refuses all that is not in the file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Page:
    """A page that is being written."""

    def __init__(self, path: pathlib.Path, stream: TextIO) -> None:
        self._path = path
        self._stream = stream

    def write(self, markup: str) -> None:
        """Adds a part, as the functions below return it.

        Raises:
          ConfigError: the file cannot be written.
        """
        with _explained(self._path):
            self._stream.write(f"{markup}\n")


@contextlib.contextmanager
def open_page(path: pathlib.Path, title: str, lead: str) -> Iterator[Page]:
    """Writes a page. Nothing is left of it if the context ends with an exception.

    Args:
      path: the file, which is replaced if it exists.
      title: heading and title.
      lead: a sentence below the heading.

    Raises:
      ConfigError: the file cannot be written.
    """
    spare = spare_name(path)
    with _explained(path):
        stream = spare.open("w", encoding="utf-8")
    try:
        page = Page(path, stream)
        page.write(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>'
        )
        yield page
        page.write("</body>\n</html>")
        with _explained(path):
            stream.close()
            spare.replace(path)
    finally:
        stream.close()
        spare.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def escape(plain: str) -> str:
    """A text as it stands, with no markup in it."""
    return html.escape(plain, quote=True)


def heading(title: str, note: str = "") -> str:
    """The heading of a section, and a sentence about it."""
    return f"<h2>{escape(title)}</h2>" + (f'\n<p class="note">{escape(note)}</p>' if note else "")


def card(title: str, *parts: str, note: str = "", wide: bool = False) -> str:
    """A box with a picture and what is said about it.

    Args:
      title: such as the name of a file.
      *parts: markup.
      note: a sentence below.
      wide: whether it takes a whole row.
    """
    body = "\n".join(parts) + (f'\n<p class="note">{escape(note)}</p>' if note else "")
    kind = "card wide" if wide else "card"
    return f'<article class="{kind}">\n<h3>{escape(title)}</h3>\n{body}\n</article>'


def picture(pixels: np.ndarray, alternative: str) -> str:
    """An image (H, W, 3) uint8; `alternative` describes it to those who do not see it."""
    height, width, _ = pixels.shape
    small = max(height, width) < SMALL
    stream = io.BytesIO()
    if small:
        Image.fromarray(pixels).save(stream, "PNG")
    else:
        Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
    kind = 'class="small" ' if small else ""
    source = _data(stream.getvalue(), "png" if small else "jpeg")
    return (
        f'<img {kind}src="{source}" width="{width}" height="{height}" loading="lazy" '
        f'alt="{escape(alternative)}">'
    )


def drawing(figure: Any, alternative: str, dpi: int = 150) -> str:
    """A figure of matplotlib."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.05)
    with Image.open(stream) as image:
        width, height = (round(side * 96 / dpi) for side in image.size)
    return (
        f'<img class="figure" src="{_data(stream.getvalue(), "png")}" width="{width}" '
        f'height="{height}" alt="{escape(alternative)}">'
    )


def bars(rows: Sequence[tuple[str, float]], marked: str | None = None) -> str:
    """Names with shares of 1 as bars.

    Args:
      rows: (name, share), in the order in which they are shown.
      marked: a name whose bar has another colour.
    """
    lines = []
    for name, share in rows:
        kind = ' class="marked"' if name == marked else ""
        lines.append(
            f'<li{kind}><span>{escape(name)}</span><span class="number">{percent(share)}</span>'
            f'<span class="track"><i style="width: {100 * share:.2f}%"></i></span></li>'
        )
    return '<ol class="bars">\n' + "\n".join(lines) + "\n</ol>"


def table(content: Table) -> str:
    """A table of text."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in content.columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in content.rows
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def percent(share: float) -> str:
    """0.4321 -> "43.2 %"."""
    return f"{100 * share:.1f} %"


def _data(encoded: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}"
