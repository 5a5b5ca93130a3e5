"""A real corpus that every environment has: the descriptions and licences of the installed Python packages.

Pages written for people, with badges, menus, code and tables; and licences, of which many are near-duplicates. Which
packages there are depends on the environment, so counts differ a little from one machine to the next.
"""

from collections.abc import Iterator
from importlib import metadata

from lib.curation import sources
from lib.curation.document import Document

NAME = "installed"
_LICENCES = ("LICENSE", "LICENCE", "COPYING", "NOTICE")
_TEXTS = ("", ".txt", ".md", ".rst")
_LONGEST = 400_000  # characters; longer ones are lists of all licences of a large package


def load(name: str = NAME) -> list[Document] | sources.Shards:
    """The documents of the packages for "installed", else those of the file or folder `name`."""
    return documents() if name == NAME else sources.Shards(name)


def documents() -> list[Document]:
    """The descriptions and licences, in order of the packages' names; metadata: package, kind."""
    found = {}
    for package in metadata.distributions():
        name = package.metadata["Name"]
        if name and name not in found:
            found[name] = [*_description(package, name), *_licences(package, name)]
    return [document for name in sorted(found, key=str.lower) for document in found[name]]


def _description(package, name: str) -> Iterator[Document]:
    text = package.metadata.get_payload() or ""
    if isinstance(text, str) and text.strip() and text.strip() != "UNKNOWN":
        yield Document(text, f"{name}/description", {"package": name, "kind": "description"})


def _licences(package, name: str) -> Iterator[Document]:
    for path in sorted(package.files or [], key=str):
        if path.stem.upper().startswith(_LICENCES) and path.suffix.lower() in _TEXTS:
            try:
                text = package.locate_file(path).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if text.strip() and len(text) <= _LONGEST:
                yield Document(text, f"{name}/{path}", {"package": name, "kind": "licence"})
