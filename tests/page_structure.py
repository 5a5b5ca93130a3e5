"""What a page of HTML holds, read by a parser: for tests of the report."""

import html.parser
import urllib.parse
from pathlib import Path


class Structure(html.parser.HTMLParser):
    """Headings, links, tables, pictures and visible text of the page in a file.

    addresses: every href and src; loaded: those that a browser fetches by itself. loose_tables: tables outside a box
    to scroll in; unnamed: pictures without alternative text.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.open, self.text = path, [], ""
        self.headings, self.addresses, self.loaded, self.anchors = [], [], [], set()
        self.loose_tables = self.unnamed = self.scripts = 0
        self.viewport = self.policy = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag in ("h1", "h2", "h3"):
            self.headings.append(tag)
        self.addresses += [values[name] for name in ("href", "src") if name in values]
        self.loaded += [values["src"]] if "src" in values else []
        self.anchors.add(values.get("id"))
        self.viewport |= values.get("name") == "viewport" and "width=device-width" in values["content"]
        self.policy |= values.get("http-equiv") == "Content-Security-Policy"
        self.scripts += tag == "script" or any(name.startswith("on") for name in values)
        boxes = [name for _, names in self.open for name in names]
        self.loose_tables += tag == "table" and not {"wide", "output_html"} & set(boxes)
        self.unnamed += tag == "img" and not values.get("alt")
        if tag not in ("meta", "img", "br", "hr", "link"):
            self.open.append((tag, (values.get("class") or "").split()))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if not any(tag in ("style", "script") for tag, _ in self.open):
            self.text = f"{self.text} {' '.join(data.split())}".strip()

    def check(self, address: str, pages: dict[Path, "Structure"]):
        """Raise AssertionError where an address of this page leads to no file, or to no place in its page."""
        target, _, anchor = address.partition("#")
        if target.startswith(("http:", "https:", "data:")):
            return
        path = (self.path.parent / urllib.parse.unquote(target)).resolve() if target else self.path
        assert path.exists(), f"{self.path.name}: {address}"
        page = pages.get(path)
        assert not anchor or page is None or anchor in page.anchors, f"{self.path.name}: {address}"
