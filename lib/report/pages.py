"""Pages of HTML from the templates beside this file; they need neither a network nor scripts."""

import functools
from pathlib import Path

import jinja2
from pygments.formatters import HtmlFormatter

from lib import files

FOLDER = Path(__file__).parent / "templates"
# what tells a page of ours from one that somebody put there; pages of earlier versions had no generator
OURS = (b'<meta name="generator" content="Thimble">', b"<p class='back'><a href='../index.html'>", b"<title>Thimble: ")


def render(name: str, **context) -> str:
    """The page of `templates/NAME.html` with everything in `context` escaped unless the template says otherwise."""
    return _environment().get_template(f"{name}.html").render(css=css(), **context)


def write(path: Path, name: str, **context) -> Path:
    """`render` into the file `path`; returns it. Raises ValueError where a page lies there that is not the report's."""
    if path.exists() and not is_ours(path):
        raise ValueError(
            f"{files.place(path)} is no page of this report; only those are written over; "
            "move it to another folder and build the report again."
        )
    return files.write_text(path, render(name, **context))


def is_ours(path: Path) -> bool:
    """Whether the file at `path` is a page that the report wrote."""
    start = path.read_bytes()
    return any(mark in start for mark in OURS)


@functools.cache
def css() -> str:
    """The style of all pages, with the colours of code in light and dark."""
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    text = (FOLDER / "page.css").read_text(encoding="utf-8")
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n{text}"


@functools.cache
def _environment():
    loader = jinja2.FileSystemLoader(FOLDER)
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
