"""Executed notebooks as HTML pages: nbconvert does the cells, formulas become MathML, links lead into the report."""

import json
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

import latex2mathml.converter
import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

from lib.report import chapters, pages

LINES = 8  # of the cell that failed, and of what it had printed, that the report shows
TITLE = re.compile(r"^#\s+(.+)$", re.M)


@dataclass(frozen=True)
class Page:
    """One executed notebook: its name, title and HTML file.

    Of one that failed, `error` is its sentence, `cell` the last lines of the cell it stopped in, and `printed` the last
    lines that this cell had printed.
    """

    name: str
    title: str
    path: Path
    failed: bool
    error: str = ""
    cell: str = ""
    printed: str = ""


def convert(folder: Path) -> list[Page]:
    """Convert every executed notebook of `folder` whose HTML is missing or older than it; returns all pages by name.

    `<name>.failed.ipynb` is a notebook that stopped with an error; a file that can't be read counts as one, and its
    page says so. Pages without their notebook are removed. Raises ValueError where a page that is not the report's lies
    where one has to be.
    """
    found, sources = [], [Path(__file__), *pages.FOLDER.iterdir()]
    for path in sorted(each for each in folder.glob("*.ipynb") if not each.name.startswith(".")):
        document, unread = _read(path)
        page = _page(path, document, unread)
        found.append(page)
        changed = max(source.stat().st_mtime for source in (path, *sources))
        if not page.path.exists() or page.path.stat().st_mtime < changed or not pages.is_ours(page.path):
            pages.write(page.path, "notebook", title=page.title, chapter=chapters.of(page.name), body=body(document))
    for stale in set(folder.glob("*.html")) - {each.path for each in found}:
        if pages.is_ours(stale):
            stale.unlink()
    return found


def _read(path: Path) -> tuple[dict, str]:
    """The notebook at `path` and ""; of a file that can't be read, a notebook that says so and the sentence."""
    try:
        document = nbformat.read(path, as_version=4)  # brings older formats to this one
        nbformat.validate(document, relax_add_props=True)
        return document, ""
    except Exception as error:  # whose classes of errors have no common ancestor
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        sentence = f"{path.name} is no notebook that can be read ({reason}); run it again, or remove the file."
        printed = nbformat.v4.new_output("stream", text=sentence)
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[printed])]), sentence


def _page(path: Path, document: dict, error: str = "") -> Page:
    failed = path.name.endswith(".failed.ipynb") or bool(error)
    name, stopped = path.name.removesuffix(".ipynb").removesuffix(".failed"), {}
    for cell in document["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                stopped, error = cell, f"{output['ename']}: {output['evalue']}"[:300]
    printed = [output.get("text", "") for output in stopped.get("outputs", [])]
    parts = [_last(stopped.get("source", "")), _last("".join("".join(text) for text in printed))]
    return Page(name, heading(document) or name, path.with_suffix(".html"), failed, error, *parts)


def _last(text: str | list[str]) -> str:
    """The last lines of `text`; of a line that a progress bar wrote over itself, what stood there last."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in "".join(text).rstrip().split("\n")]
    return "\n".join([*(["…"] if len(lines) > LINES else []), *lines[-LINES:]])


def prose(document: dict) -> str:
    """All Markdown of a notebook (its JSON)."""
    return "\n\n".join("".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "markdown")


def heading(document: dict) -> str:
    """The title of a notebook (its JSON), "" where it has none."""
    found = TITLE.search(prose(document))
    return found[1].strip() if found else ""


def body(document: dict) -> str:
    """The cells of a notebook (its JSON) as HTML, without scripts and widgets; pictures are named by their heading."""
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.exclude_anchor_links = True
    exporter.register_filter("markdown2html", markdown)
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)  # leaves a progress bar's last state
    notebook, section = nbformat.reads(json.dumps(document), as_version=4), "the notebook"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            section = re.findall(r"^#+\s+(.+)$", cell.source, re.M)[-1:] or [section]
            section = section[0]
        cell.metadata["alt"] = f"Figure of the section “{section}”; the numbers are in the text around it."
        for output in cell.get("outputs", []):
            for kind in [kind for kind in output.get("data", {}) if "widget-view" in kind or "javascript" in kind]:
                del output["data"][kind]  # the text beside it needs no script
    return re.sub(r"<pre>(?=([^<]+))", _pre, exporter.from_notebook_node(notebook)[0])


def _pre(match: re.Match) -> str:
    """What was printed in columns scrolls in a box of its own; all other text wraps."""
    return "<pre class='columns'>" if len(re.findall(r"^.*\S {2,}\S", match[1], re.M)) > 1 else "<pre>"


def markdown(text: str) -> str:
    """Markdown as HTML: formulas are MathML, tables scroll inside their own box, links to notebooks stay inside."""
    return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(text)


class _Renderer(IPythonRenderer):
    def block_math(self, body):
        return mathml(body, "block")

    def inline_math(self, body):
        return mathml(body, "inline")

    def table(self, text):
        return f"<div class='wide' tabindex='0'><table>{text}</table></div>"

    def link(self, text, url, title=None):
        if re.fullmatch(r"[\w.-]+\.ipynb", url):  # of the runs of that notebook, its chapter lists all
            url = f"../{chapters.of(url).file}#{url.removesuffix('.ipynb')}"
        return super().link(text, url, title)


def mathml(tex: str, display: str) -> str:
    """A formula as MathML, which browsers draw without a script; as code where it can't be read."""
    try:
        # the converter passes on what it doesn't know, tags of HTML included
        return latex2mathml.converter.convert(tex.replace("<", r"\lt ").replace(">", r"\gt "), display=display)
    except Exception:  # whose classes of errors have no common ancestor
        return f"<code>{escape(tex)}</code>"
