"""Pages of HTML from the templates beside this file."""

from pathlib import Path


def render(name: str, **context) -> str:
    """The page of `name`.html with everything in `context` filled in, escaped unless the template says otherwise."""
    import jinja2

    source = (Path(__file__).parent / f"{name}.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True).from_string(source).render(context)
