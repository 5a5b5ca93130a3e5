"""Executed notebooks as small HTML pages that need no network: own style, formulas drawn as SVG, no scripts."""

import base64
import html
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

from lib import files
from lib.report import style

HERE = Path(__file__).parent
# a formula in Markdown, unless it stands in code, which is matched first and kept
FORMULA = re.compile(
    r"(?P<code>```.*?```|`[^`\n]*`)|\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$\n]+?)\$(?![\w$])", re.S
)
BACK = "<p class='back'><a href='../index.html'>← Report</a></p>"
# what matplotlib's mathtext calls by another name
NAMES = {r"\lVert": r"\Vert", r"\rVert": r"\Vert", r"\lvert": "|", r"\rvert": "|", r"\tfrac": r"\frac"}


@dataclass(frozen=True)
class Page:
    """One executed notebook: its name, title, HTML file, whether it failed and with which error."""

    name: str
    title: str
    path: Path
    failed: bool
    error: str


def convert(folder: Path) -> list[Page]:
    """Convert every executed notebook of `folder` whose HTML is missing or older than it; returns all pages by name.

    `<name>.failed.ipynb` is a notebook that stopped with an error. Pages without their notebook are removed.
    """
    pages = []
    for path in sorted(each for each in folder.glob("*.ipynb") if not each.name.startswith(".")):
        target = path.with_suffix(".html")
        document = json.loads(path.read_text(encoding="utf-8"))
        pages.append(_page(path, document, target))
        changed = max(source.stat().st_mtime for source in (path, Path(__file__), HERE / "page.css"))
        if not target.exists() or target.stat().st_mtime < changed:
            files.write_text(target, page(document, pages[-1].title))
    for stale in set(folder.glob("*.html")) - {each.path for each in pages}:
        if BACK.encode() in stale.read_bytes():  # a page of ours, not one that somebody put there
            stale.unlink()
    return pages


def _page(path: Path, document: dict, target: Path) -> Page:
    text = "\n".join("".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "markdown")
    title = re.search(r"^#\s+(.+)$", text, re.M)
    errors = [
        f"{output['ename']}: {output['evalue']}"
        for cell in document["cells"]
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]
    name = path.name.removesuffix(".ipynb").removesuffix(".failed")
    failed = path.name.endswith(".failed.ipynb")
    return Page(name, title[1].strip() if title else name, target, failed, errors[-1][:300] if errors else "")


def page(document: dict, title: str) -> str:
    """A notebook (its JSON) as one HTML page without any address of the network in it."""
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)  # leaves a progress bar's last state
    notebook = nbformat.reads(json.dumps(document), as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = formulas(cell.source)
        for output in cell.get("outputs", []):
            for kind in [kind for kind in output.get("data", {}) if "widget-view" in kind or "javascript" in kind]:
                del output["data"][kind]  # the text beside it needs no script
    body, _ = exporter.from_notebook_node(notebook)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{css()}</style></head>\n<body class='notebook'>"
        f"{BACK}\n{body}\n</body></html>\n"
    )


def css() -> str:
    """The style of all pages, with the colours of code in light and dark."""
    from pygments.formatters import HtmlFormatter

    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    text = (HERE / "page.css").read_text(encoding="utf-8")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{text}"


def formulas(markdown: str) -> str:
    """Markdown with `$...$` and `$$...$$` drawn as inline SVG, or as code where matplotlib can't read them."""

    def drawn(match: re.Match) -> str:
        if match["code"]:
            return match["code"]
        tex = (match["display"] or match["inline"]).strip()
        picture = formula(" ".join(tex.split()))
        return f'<span class="display">{picture}</span>' if match["display"] else picture

    return FORMULA.sub(drawn, markdown)


def formula(tex: str) -> str:
    """One formula as an HTML image whose baseline sits on that of the text; its TeX is the alternative text."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    plain = re.sub(r"\\[A-Za-z]+", lambda match: NAMES.get(match[0], match[0]), tex)
    buffer = io.BytesIO()
    try:
        with style.use(), matplotlib.rc_context({"mathtext.fontset": "stix"}):
            depth = math_to_image(f"${plain}$", buffer, FontProperties(size=12.5), dpi=72, format="svg")
    except (ValueError, RuntimeError):
        return f"<code>{html.escape(tex)}</code>"
    svg = re.sub(rb"<metadata>.*?</metadata>", b"", buffer.getvalue(), flags=re.S)
    data = base64.b64encode(svg).decode()
    align = f"style='vertical-align:{-depth * 96 / 72:.1f}px'"
    return f"<img class='math' {align} alt='{html.escape(tex, quote=True)}' src='data:image/svg+xml;base64,{data}'>"
