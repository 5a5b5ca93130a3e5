"""The report as one folder of HTML that opens without a network: `python -m lib.report.site [--readme]`.

data/report/index.html holds the question, the answer and what failed; a page for each chapter of notebooks holds its
tables and figures; data/report/files/ has them to download, and data/report/notebooks/ the executed notebooks.
"""

import argparse
import json
import re
import sys
from html import escape
from pathlib import Path

import pandas as pd

from lib import claims, files, machine, published, records, results
from lib.report import ablations, chapters, figures, notebooks, outline, pages, selection, style, tables, task_pages
from lib.report.findings import answer, findings, question

KINDS = {"csv": "CSV with full numbers", "md": "Markdown", "tex": "LaTeX"}
LEADING = "quality_by_bytes"  # the figure on top


def build() -> Path:
    """Write the report from all records and executed notebooks; returns the path of its index.html.

    What is missing is shown as missing. The index is written last: it never points to files that are not there. Raises
    ValueError where a page that is not the report's lies where one has to be.
    """
    folder = files.report()
    files.check_writable(folder / "index.html", bytes_needed=32 << 20)
    table, documents = results.table(), records.documents()
    executed = notebooks.convert(folder / "notebooks") if (folder / "notebooks").is_dir() else []
    missed = claims.missed(results.newest(documents))
    contents = outline.outline(executed, missed)
    drawn = {name: _figure(table, name, each, folder / "files") for name, each in chapters.FIGURES.items()}
    groups = task_pages.build(table, folder, chapters.of("51_"))
    parts = {"20": [_ranking(table)], "50": _measured(table, groups, folder / "files"), "60": _runs(documents)}
    for before, here, after in zip([None, *contents], contents, [*contents[1:], None]):
        number = here.chapter.number
        shown = [drawn[name] for name, each in chapters.FIGURES.items() if each.chapter == number]
        context = dict(title=here.name, chapter=here, tables=parts.get(number, []), figures=shown)
        pages.write(folder / here.file, "chapter", before=before, after=after, **context)
    days = sorted(document["started"][:10] for document in documents)
    return pages.write(
        folder / "index.html", "index", title=selection.title(table), asked=_unbroken(question(table)),
        answer=[_unbroken(sentence) for sentence in answer(table)], figure=drawn[LEADING], chapters=contents,
        failed=[page for page in executed if page.failed], problems=_problems(table, documents, executed),
        missed=missed, period=" to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        machines=sorted({machine.label(document["machine"]) for document in documents}),
    )  # fmt: skip


def readme(path: Path | None = None) -> Path:
    """Put results table, published numbers and figure into README.md and data/figures/readme.png.

    The table stands between two marks, each published number between two of its own (`published.write_marks`).

    Raises ValueError when a mark is missing, or when there is no finished run to show.
    """
    path = path or files.ROOT / "README.md"
    text, table = path.read_text(encoding="utf-8"), selection.main(results.table())
    published.replaced(text, "results", "", path.name)  # a page without marks is refused before anything is drawn
    frame = tables.benchmark(table)
    if frame.empty:
        raise ValueError(
            f"no finished run of {selection.BENCHMARK} is on record; a README shows real ones; `make report`."
        )
    files.write_bytes(files.figures() / "readme.png", style.png(figures.quality_by_bytes(table)))
    block = f"{frame.attrs['title']}\n\n{tables.markdown(frame)}"
    return files.write_text(path, published.write_marks(published.replaced(text, "results", block, path.name)))


def _unbroken(sentence: str) -> str:
    """The sentence with spaces that do not break inside `26.2 ± 0.4`, `95 %` and `4 bits`."""
    return re.sub(r" (?=[±%]|bits|blocks|MB)|(?<=±) ", "\N{NO-BREAK SPACE}", sentence)


def _measured(table: pd.DataFrame, groups: list[dict], folder: Path) -> list[dict]:
    """The tables of the benchmark, a setting each, what they say in sentences, and the pages of task scores."""
    said = "".join(f"<li>{escape(_unbroken(sentence))}</li>" for sentence in findings(table))
    asked = "".join(
        f"<li><a href='{group['file']}'>{escape(group['title'])}</a>: {group['count']} scores</li>"
        if group["file"]
        else f"<li>{escape(group['title'])}: not measured yet</li>"
        for group in groups
    )
    found = [_comparison(part, folder, number) for number, part in enumerate(selection.settings(table))]
    found += [_part("What the numbers say", f"<ul>{said}</ul>")] if said else []
    return [*found, _part("Tasks", f"<ul>{asked}</ul>")]


def _part(title: str, table: str, downloads: dict | None = None) -> dict:
    return {"title": title, "table": table, "downloads": downloads or {}}


def _comparison(part: pd.DataFrame, folder: Path, number: int) -> dict:
    """One setting: its table and the files of it; a table that would be unfair is replaced by the reason."""
    title = f"Results: {selection.title(part)}"
    try:
        saved = tables.save(part, folder, "benchmark" if number == 0 else f"benchmark-{number + 1}")
        shown_table = tables.html(tables.benchmark(part))
    except ValueError as error:
        return _part(title, f"<p>{escape(str(error))}</p>")
    return _part(title, shown_table, {KINDS[kind]: name for kind, name in saved.items()})


def _ranking(table: pd.DataFrame) -> dict:
    """The variants of the recipe by bit width, best first, or the sentence that says what is missing for it."""
    found = ablations.ranking(table)
    if isinstance(found, str):
        return _part("Methods by bit width", f"<p>{escape(found)}</p>")
    return _part(found.attrs["title"], tables.html(found))


def _figure(table: pd.DataFrame, name: str, wanted: chapters.Figure, folder: Path) -> dict:
    """Draw and save a figure, and copy it into the report so that its folder can be moved on its own."""
    figure = wanted.draw(table)
    for path in style.save(figure, name):
        files.write_bytes(folder / path.name, path.read_bytes())
    width, height = (int(inches * style.SHOWN_DPI) for inches in figure.get_size_inches())
    titles = [axes.get_title("left") for axes in figure.axes] + [figure.get_suptitle()]
    alt = f"{', '.join(filter(None, titles))}. {wanted.caption} The numbers are in the tables."
    return {"name": name, "caption": wanted.caption, "alt": alt, "width": width, "height": height}


def _problems(table: pd.DataFrame, documents: list[dict], executed: list[notebooks.Page]) -> list[str]:
    """What never ended or is missing, beside the notebooks that failed."""
    lines, failed = [], {page.name for page in executed if page.failed}
    for document in documents:
        here = document["status"] == "running" and document["run"] in records.started_here
        if document["status"] != "finished" and document["run"] not in failed and not here:
            lines.append(f"{document['run']}: {document['status']}, its numbers are not shown")
    return lines + selection.absent(table)


def _runs(documents: list[dict]) -> list[dict]:
    """Where the numbers come from: inputs, machines and versions, and every run with its parameters and code."""
    inputs = pd.DataFrame([item for document in documents for item in document.get("inputs", [])])
    inputs = inputs.reindex(columns=["kind", "name", "split", "origin", "sha256"]).fillna("").astype(str)
    inputs["sha256"] = inputs["sha256"].str[:12]
    versions = sorted({
        f"{machine.label(d['machine'])}, {d['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in d["versions"].items() if version)
        for d in documents
    })  # fmt: skip
    lines = pd.DataFrame([_run(document) for document in documents])
    return [
        _part("Data and models", _plain_table(inputs.drop_duplicates().rename(columns=str.capitalize))),
        _part("Machines and versions", f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in versions)}</ul>"),
        _part(f"All {len(documents)} runs", _plain_table(lines)),
    ]


def _run(document: dict) -> dict:
    """One line about a run: what, when, with which code, how it ended."""
    commit = (document.get("commit") or "no commit")[:10] + " with changes" * bool(document.get("dirty"))
    parameters = ", ".join(f"{key}={json.dumps(value)}" for key, value in document["parameters"].items())
    return {
        "Notebook": document["notebook"],
        "Parameters": parameters,
        "Seed": document["seed"],
        "Started": document["started"][:16].replace("T", " "),
        "Code": commit,
        "Status": document["status"],
    }


def _plain_table(frame: pd.DataFrame) -> str:
    return "<p>None on record.</p>" if frame.empty else tables.html(frame, "text")


def main(arguments: list[str] | None = None) -> int:
    """Command line: build the report, print the results and where it is; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.report.site", description="Build the HTML report.")
    parser.add_argument("--readme", action="store_true", help="also put the results into README.md")
    given = parser.parse_args(arguments)
    try:
        path = build()
        if given.readme:
            readme()
        print(tables.text(tables.benchmark(selection.main(results.table()))))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
