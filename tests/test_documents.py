"""What the documents name exists: links, files, commands, targets of make."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# A changelog also names what is gone.
CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]

each_document = pytest.mark.parametrize("document", CURRENT, ids=lambda path: path.name)


def anchors(document):
    """The anchors of a Markdown file: its headings as GitHub writes them in addresses."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", document.read_text())
    for path, anchor in links:
        target = document.parent / path if path else document
        assert target.exists(), f"{document.name} links to {path}"
        assert not anchor or anchor in anchors(target), f"{document.name} links to {path}#{anchor}"


@each_document
def test_files_exist(document):
    """Names in backticks that begin with one of our folders; what runs write is not among them."""
    name = r"(?:pallas_kernels|lrnet_jax|experiments|tests|docs|\.ci)/[\w./]*"
    for path in re.findall(rf"(?<![\w/])({name})", document.read_text()):
        assert (ROOT / path.rstrip(".")).exists(), f"{document.name} names {path}"


@each_document
def test_commands_exist(document):
    for module in re.findall(r"python -m\s+([\w.]+)", document.read_text()):
        if module.partition(".")[0] not in ("pallas_kernels", "lrnet_jax", "experiments", "tests"):
            continue
        path = ROOT.joinpath(*module.split("."))
        file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert file.exists(), f"{document.name} runs {module}"
        assert '__name__ == "__main__"' in file.read_text() or file.name == "__main__.py"


@each_document
def test_targets_of_make_exist(document):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^    |`)make ([a-z-]+)", document.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document.name}: make {target}"


def test_the_pages_can_be_found():
    """README or WORKSPACE.md links to every other page."""
    entries = [ROOT / "README.md", ROOT / "WORKSPACE.md"]
    text = "".join(entry.read_text() for entry in entries)
    others = [path for path in DOCUMENTS if path not in entries]
    assert not [path.name for path in others if f"]({path.relative_to(ROOT)})" not in text]
