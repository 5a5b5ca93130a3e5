"""Published results: one small file per batch in `data/published/`, read by notebooks 70 to 74 and the README.

Batches that take hours are not run again for a report, so their results are kept in the repository. A table holds
numbers as printed, "27.4 ± 1.0"; `numbers` parses them. In the README a number stands between marks that name its
source, and `make readme` writes it there:

    <!-- peers / 2 bits / the recipe / perplexity -->50.7 ± 2.3<!-- -->
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from lib import files

ATTEMPTS = "attempts.json"  # by notebook: what was tried, with the results
_NUMBER = re.compile(r"(-?[\d,]+(?:\.\d+)?)(?: ± ([\d,]+(?:\.\d+)?))?(?: \(.*\))?")
_MARK = re.compile(r"<!-- ([^>\n]+?) / ([^>\n]+?) / ([^>\n]+?) / ([^>\n]+?) -->(.*?)<!-- -->", re.DOTALL)


@dataclass(frozen=True)
class Published:
    """The results of one batch. tables: key -> {title, columns, rows}, all of them text; notes: observations."""

    name: str
    notebook: str
    batch: str
    machine: str
    commit: str
    protocol: str
    tables: dict[str, dict] = field(repr=False)
    notes: list[str] = field(repr=False)

    def table(self, key: str):
        """A table as it was printed: a DataFrame of text, its first column as the index."""
        import pandas  # loads slowly, only for the table

        if key not in self.tables:
            raise ValueError(f"table {key!r} of {self.name} is unknown; {files.choices(key, self.tables)}")
        found = self.tables[key]
        return pandas.DataFrame(found["rows"], columns=found["columns"]).set_index(found["columns"][0])

    def numbers(self, key: str):
        """(values, standard errors) of a table: DataFrames of float, NaN where no number or no error stands."""
        parts = self.table(key).map(number)
        return parts.map(lambda pair: pair[0]), parts.map(lambda pair: pair[1])

    def cell(self, key: str, row: str, column: str) -> str:
        """The text of one cell; ValueError, with the nearest name, for a row or a column that is not there."""
        table = self.table(key)
        for given, allowed in ((row, table.index), (column, table.columns)):
            if given not in allowed:
                raise ValueError(f"{given!r} is not in {self.name} / {key}; {files.choices(given, allowed)}")
        return table.loc[row, column]

    def about(self) -> str:
        """The measuring protocol, as Markdown."""
        run = f"`{self.notebook}`" + (f" with `batches/{self.batch}`" if self.batch else "")
        return f"{self.protocol} {self.machine}; {run}, commit {self.commit}. ± is one standard error."

    def log(self) -> str:
        """The notes, as a Markdown list."""
        return "\n".join(f"- {note}" for note in self.notes)


def folder() -> Path:
    """The folder of the files: in the repository, whatever `THIMBLE_HOME` is."""
    return files.ROOT / "data" / "published"


def names(base: Path | None = None) -> list[str]:
    """What is published."""
    return sorted(each.stem for each in (base or folder()).glob("*.json") if each.name != ATTEMPTS)


def load(name: str, base: Path | None = None) -> Published:
    """The results called `name`; ValueError with the choices where there are none."""
    path = (base or folder()) / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"results {name!r} are unknown; {files.choices(name, names(base))}")
    return Published(name, **json.loads(path.read_text()))


def attempts(tens: str) -> str:
    """What the notebooks whose numbers begin with one of the digits in `tens` ("4 5") tried, as Markdown."""
    found = json.loads((folder() / ATTEMPTS).read_text())
    named = {name: notes for name, notes in found.items() if name[0] in tens.split()}
    return "\n\n".join(f"**{name}**\n\n" + "\n".join(f"- {note}" for note in named[name]) for name in named)


def number(text: str) -> tuple[float, float]:
    """(value, standard error) of a cell such as "1,222 ± 97" or "0.126 ± 0.003 (0.001)"; NaN for what isn't there."""
    found = _NUMBER.fullmatch(text.strip())
    value, error = found.groups() if found else (None, None)
    return tuple(float("nan") if part is None else float(part.replace(",", "")) for part in (value, error))


def write_marks(text: str, base: Path | None = None) -> str:
    """`text` with every marked number as its record has it now."""

    def written(match: re.Match) -> str:
        name, key, row, column, _ = match.groups()
        return f"<!-- {name} / {key} / {row} / {column} -->{load(name, base).cell(key, row, column)}<!-- -->"

    return _MARK.sub(written, text)


def unmarked(text: str) -> list[str]:
    """Numbers with a standard error, or of something measured, that stand in `text` without a mark or a run's tag.

    Left out is what a program writes: marked numbers, and the blocks between `<!-- NAME:begin -->` and its end.
    """
    rest = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", _MARK.sub("", text), flags=re.DOTALL)
    units = r"(?:tokens/s|nats|MB/s|GB/s|times as fast|times faster|% of the|samples a second)"
    return re.findall(rf"\d[\d.,]* ± \d[\d.,]*|\d[\d.,]* {units}|perplexity (?:of )?[\d.]+", rest)


def marks(name: str) -> tuple[str, str]:
    """What stands before and behind the part of a page called `name` that a command writes."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def replaced(text: str, name: str, block: str, page: str = "the page") -> str:
    """`text` with `block` between the two marks of `name`; ValueError where `page` lacks one of them."""
    begin, end = marks(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} lacks {end if found else begin}; both marks, in order, are needed; add them.")
    return f"{before}{begin}\n{block}\n{end}{after}"
