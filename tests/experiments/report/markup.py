"""A strict reader of pages: every element closed, in order; no address but data within."""

import html.parser

VOID = {"meta", "img", "br", "link", "input"}


class Reader(html.parser.HTMLParser):
    """Fails where elements are not nested; keeps elements, texts and attributes."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open = []
        self.elements = []  # (tag, attributes)
        self.texts = []  # outside of <style>

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if data.strip() and "style" not in self.open:
            self.texts.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def read(path):
    """Parses a page, after checking that it needs nothing else."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>\n")
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open, reader.open
    for tag, attributes in reader.elements:
        assert tag not in ("script", "link", "iframe"), tag
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), attributes
    assert "url(" not in text
    assert "@import" not in text
    return reader
