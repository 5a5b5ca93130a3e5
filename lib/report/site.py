"""The report as one folder of HTML that opens without a network: `python -m lib.report.site [--readme]`.

data/report/index.html shows what the records say, data/report/files/ holds figures and tables to download, and
data/report/notebooks/ the executed notebooks.
"""

import argparse
import json
import re
import sys
from html import escape
from pathlib import Path

import pandas as pd

from lib import claims, files, machine, published, records, results
from lib.report import (
    changes,
    compare,
    decoding,
    evaluation,
    field,
    figures,
    grids,
    healing,
    ladders,
    marked,
    notebooks,
    packed,
    peers,
    pruning,
    recipe,
    rows,
    style,
    tables,
    task_pages,
)
from lib.report.findings import findings
from lib.report.pages import render

BEGIN, END = marked.marks("results")
KINDS = {"csv": "CSV with full numbers", "md": "Markdown", "tex": "LaTeX"}


def shown() -> dict:
    """The figures of the report by name: the function that draws each, and its caption."""
    return {
        "quality_by_bytes": (figures.quality_by_bytes, "Quality against what has to be stored."),
        "quality_by_bits": (figures.quality_by_bits, "The same against bits per weight of everything stored."),
        "kl_by_bytes": (
            lambda table: figures.quality_by_bytes(table, "kl_divergence"),
            "Distance from the original's predictions, which sees damage that perplexity hides.",
        ),
        "speed_by_bytes": (figures.speed_by_bytes, "Speed relative to the original, timed in turns with it."),
        "memory_by_method": (figures.memory_by_method, "Memory that running each model took at its peak."),
        "quality_by_depth": (changes.quality_by_depth, "What removing blocks costs, by the score that chose them."),
        "layer_importance": (figures.layer_importance, "How much each block matters, by two scores."),
        "ladder": (
            lambda table: grids.ladder(table, "kl_divergence", "22_gptq"),
            "What each ingredient of GPTQ brings, at the same bits and bytes.",
        ),
        "recipe_ladder": (
            lambda table: grids.ladder(table, "kl_divergence", "29_best_recipe"),
            "Methods and the recipe at the same bits, each from the original on.",
        ),
        "allocation": (recipe.allocation, "Bits of each group of layers under a budget of bytes."),
        "layer_error": (figures.layer_error, "Output error of each layer after quantization, relative to the output."),
        "cost_by_depth": (pruning.cost_by_depth, "What removing blocks saves in time and memory."),
        "healing": (healing.curves, "What training after pruning brings back of the perplexity."),
        "healing_divergence": (
            lambda table: healing.curves(table, "recovered_divergence"),
            "The same for the distance from the original's predictions.",
        ),
        "healing_tasks": (healing.answers, "What the healed models can do, between the pruned one and the original."),
        "field": (field.by_megabytes, "Distance from the original against size: our methods and other projects'."),
        "side_by_side": (peers.side_by_side, "Other projects' quantizers on the same model and tokens, in one run."),
        "by_megabytes": (recipe.by_megabytes, "Whole artifacts, embedding and head included, and llama.cpp's."),
        "task_scores": (evaluation.scores, "Tasks, beside chance and the best constant answer."),
        "task_differences": (compare.forest, "Compressed versions against the original on the same samples."),
        "decoding": (decoding.by_kind, "Lossless decoding by kind of task, the same tokens in both arms."),
        "where_time_goes": (packed.where_time_goes, "Where the time of a token goes, original against packed."),
        "grid_error": (grids.grid_error, "Error of one layer's weights by bits, group size and search."),
    }


def build() -> Path:
    """Write the report from all records and executed notebooks; returns the path of its index.html.

    What is missing is shown as missing. The index is written last: it never points to files that are not there.
    """
    folder = files.report()
    files.check_writable(folder / "index.html", bytes_needed=32 << 20)
    table, documents = results.table(), records.documents()
    pages = notebooks.convert(folder / "notebooks") if (folder / "notebooks").is_dir() else []
    context = _measured(documents) | {
        "css": notebooks.css(),
        "title": rows.title(table),
        "findings": [_unbroken(sentence) for sentence in findings(table)],
        "comparisons": [_comparison(part, folder / "files", i) for i, part in enumerate(rows.settings(table))]
        + [_ranking(table)],
        "figures": [_figure(table, name, *each, folder / "files") for name, each in shown().items()],
        "pages": pages,
        "groups": task_pages.build(table, folder, notebooks.css()),
        "problems": _problems(table, documents, pages),
        "missed": claims.missed(results.newest(documents)),
    }
    return files.write_text(folder / "index.html", render("template", **context))


def readme(path: Path | None = None) -> Path:
    """Put results table, published numbers and figure into README.md and data/figures/readme.png.

    The table stands between two marks, each published number between two of its own (`published.write_marks`).

    Raises ValueError when a mark is missing, or when there is no finished run to show.
    """
    path = path or files.ROOT / "README.md"
    text, table = path.read_text(encoding="utf-8"), rows.main(results.table())
    marked.replaced(text, "results", "", path.name)  # a page without marks is refused before anything is drawn
    frame = tables.benchmark(table)
    if frame.empty:
        raise ValueError(f"no finished run of {rows.BENCHMARK} is on record; a README shows real ones; `make report`.")
    files.write_bytes(files.figures() / "readme.png", style.png(figures.quality_by_bytes(table)))
    block = f"{frame.attrs['title']}\n\n{tables.markdown(frame)}"
    return files.write_text(path, published.write_marks(marked.replaced(text, "results", block, path.name)))


def _unbroken(sentence: str) -> str:
    """The sentence with spaces that do not break inside `26.2 ± 0.4`, `95 %` and `4 bits`."""
    return re.sub(r" (?=[±%]|bits|blocks)|(?<=±) ", "\N{NO-BREAK SPACE}", sentence)


def _comparison(part: pd.DataFrame, folder: Path, number: int) -> dict:
    """One setting: its table and the files of it; a table that would be unfair is replaced by the reason."""
    title = f"Results: {rows.title(part)}"
    try:
        saved = tables.save(part, folder, "benchmark" if number == 0 else f"benchmark-{number + 1}")
        shown_table = tables.html(tables.benchmark(part))
    except ValueError as error:
        return {"title": title, "table": tables.html(pd.DataFrame({"no table": [str(error)]})), "downloads": {}}
    return {"title": title, "table": shown_table, "downloads": {KINDS[kind]: name for kind, name in saved.items()}}


def _ranking(table: pd.DataFrame) -> dict:
    """The methods of the ladder by bit width, best first, or the sentence that says what is missing for it."""
    found = ladders.ranking(table)
    if isinstance(found, str):
        return {"title": "Methods by bit width", "table": f"<p>{escape(found)}</p>", "downloads": {}}
    return {"title": found.attrs["title"], "table": tables.html(found), "downloads": {}}


def _figure(table: pd.DataFrame, name: str, draw, caption: str, folder: Path) -> dict:
    """Draw and save a figure, and copy it into the report so that its folder can be moved on its own."""
    figure = draw(table)
    for path in style.save(figure, name):
        files.write_bytes(folder / path.name, path.read_bytes())
    width, height = (int(inches * style.SHOWN_DPI) for inches in figure.get_size_inches())
    titles = [axes.get_title("left") for axes in figure.axes] + [figure.get_suptitle()]
    alt = f"{', '.join(filter(None, titles))}. {caption} The numbers are in the tables."
    return {"name": name, "caption": caption, "alt": alt, "width": width, "height": height}


def _problems(table: pd.DataFrame, documents: list[dict], pages: list) -> list[str]:
    """What failed, never ended or is missing."""
    lines = [f"{page.name} failed: {page.error}" for page in pages if page.failed]
    failed = {page.name for page in pages if page.failed}
    for document in documents:
        here = document["status"] == "running" and document["run"] in records.started_here
        if document["status"] != "finished" and document["run"] not in failed and not here:
            lines.append(f"{document['run']}: {document['status']}, its numbers are not shown")
    return lines + rows.absent(table)


def _measured(documents: list[dict]) -> dict:
    """Where the numbers come from: machines, versions, code, times, inputs."""
    days = sorted(document["started"][:10] for document in documents)
    inputs = pd.DataFrame([item for document in documents for item in document.get("inputs", [])])
    columns = ["kind", "name", "split", "origin", "sha256"]
    inputs = inputs.reindex(columns=columns).fillna("").astype(str)
    inputs["sha256"] = inputs["sha256"].str[:12]
    versions = {
        f"{machine.label(d['machine'])}, {d['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in d["versions"].items() if version)
        for d in documents
    }
    return {
        "machines": sorted({machine.label(document["machine"]) for document in documents}),
        "versions": sorted(versions),
        "period": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        "inputs": _plain_table(inputs.drop_duplicates().rename(columns=str.capitalize)),
        "runs": _plain_table(pd.DataFrame([_run(document) for document in documents])),
        "count": len(documents),
    }


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
    if frame.empty:
        return "<p>None on record.</p>"
    return tables.html(frame).replace("<table>", "<table class='text'>", 1)


def main(arguments: list[str] | None = None) -> int:
    """Command line: build the report, print the results and where it is; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.report.site", description="Build the HTML report.")
    parser.add_argument("--readme", action="store_true", help="also put the results into README.md")
    given = parser.parse_args(arguments)
    try:
        path = build()
        if given.readme:
            readme()
        print(tables.text(tables.benchmark(rows.main(results.table()))))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
