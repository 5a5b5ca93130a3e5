"""The contents of the report: every notebook of the repository and every run on disk, by chapter."""

import json
import re
from dataclasses import dataclass, field

from lib import files
from lib.report import chapters, notebooks


@dataclass
class Notebook:
    """A notebook in its chapter: its question as HTML, its runs, and the claims of them that did not hold."""

    stem: str
    title: str
    question: str
    pages: list[notebooks.Page] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


@dataclass
class Part:
    """A chapter with its notebooks, as the pages list it."""

    chapter: chapters.Chapter
    notebooks: list[Notebook]

    @property
    def name(self) -> str:
        """Number and title of the chapter."""
        return self.chapter.name

    @property
    def file(self) -> str:
        """The page of the chapter, beside index.html."""
        return self.chapter.file

    @property
    def state(self) -> str:
        """How many of its notebooks ran, and how many runs failed."""
        run = sum(bool(each.pages) for each in self.notebooks)
        failed = sum(page.failed for each in self.notebooks for page in each.pages)
        return f"{run} of {len(self.notebooks)} notebooks run" + (f", {failed} failed" if failed else "")


def outline(executed: list[notebooks.Page], missed: list[str]) -> list[Part]:
    """The chapters in order; missed: lines of `claims.missed`, each beginning with the name of its run."""
    found = {path.stem: _notebook(path) for path in sorted((files.ROOT / "notebooks").glob("*.ipynb"))}
    for page in executed:
        stem = _stem(page.name, found)
        found.setdefault(stem, Notebook(stem, page.title, "")).pages.append(page)
    for line in missed:
        stem = _stem(line.partition(": ")[0], found)
        if stem in found:
            found[stem].missed.append(line)
    kept = {}
    for stem in sorted(found):
        kept.setdefault(chapters.of(stem), []).append(found[stem])
    return [Part(*pair) for pair in sorted(kept.items(), key=lambda pair: pair[0].number)]


def _notebook(path) -> Notebook:
    document = json.loads(path.read_text(encoding="utf-8"))
    asked = re.search(r"\*\*Question\.\*\*.*?(?=\n\n|\Z)", notebooks.prose(document), re.S)
    question = notebooks.markdown(asked[0]) if asked else ""
    return Notebook(path.stem, notebooks.heading(document) or path.stem, question)


def _stem(run: str, known) -> str:
    """The notebook of a run: its name is the notebook's, or goes on after it with a dash and parameters."""
    return max((stem for stem in known if run == stem or run.startswith(f"{stem}-")), key=len, default=run)
