"""What the documents name exists: links, files, commands, targets of make."""

import itertools
import json
import pathlib
import re

import pytest

from experiments.__main__ import GROUPS

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# A changelog also names what is gone.
CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]


def name_of(document):
    return str(document.relative_to(ROOT))


each_document = pytest.mark.parametrize("document", CURRENT, ids=name_of)


def anchors(document):
    """The anchors of a Markdown file: its headings as GitHub writes them in addresses."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
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


def test_extras_are_installed_from_the_checkout():
    """No index has this package, and some shells read brackets that are not quoted."""
    sources = [path for name in ("pallas_kernels", "lrnet_jax", "experiments") for path in
               (ROOT / name).rglob("*.py")]  # fmt: skip
    wrong = re.compile(r"pip install ['\"]?lrnet-jax|pip install -e \.\[")
    assert not [str(path) for path in [*CURRENT, *sources] if wrong.search(path.read_text())]


def test_files_of_the_makefile_exist():
    """Lists of tests, which would otherwise be found stale only by those who run them."""
    text = (ROOT / "Makefile").read_text()
    paths = set(re.findall(r"(?<![\w/.])tests/[\w/]+(?:\.py)?", text))
    assert len(paths) > 20
    assert not sorted(path for path in paths if not (ROOT / path).exists())


def test_the_pages_can_be_found():
    """README, WORKSPACE.md or the contents of the site name every other page."""
    entries = [ROOT / "README.md", ROOT / "WORKSPACE.md"]
    text = "".join(entry.read_text() for entry in entries)
    contents = (ROOT / "docs" / "index.md").read_text().splitlines()
    for path in set(DOCUMENTS) - {*entries, ROOT / "docs" / "index.md"}:
        page = str(path.relative_to(ROOT / "docs").with_suffix("")) if "docs" in path.parts else ""
        assert f"]({name_of(path)})" in text or page in contents, name_of(path)


def test_the_reference_has_every_command():
    page = (ROOT / "docs" / "reference" / "commands.md").read_text()
    for command in itertools.chain.from_iterable(GROUPS.values()):
        assert f"automodule:: experiments.{command}\n" in page, command


def test_excerpts_are_the_source():
    """Code that a page shows is that of the file that it names, but for its indentation."""
    page = (ROOT / "docs" / "gpu_kernels.md").read_text()
    source = (ROOT / "pallas_kernels/jax_triton/kernels/forward.py").read_text()
    [excerpt] = re.findall(r"\n\n((?:    .*\n)+)\n", page[page.index("Its `single_pass`") :])[:1]
    assert len(excerpt.splitlines()) > 10
    assert excerpt in source


def test_notebooks_keep_no_output():
    """The build of the site executes them."""
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs"), path.name
            assert not cell.get("execution_count"), path.name
