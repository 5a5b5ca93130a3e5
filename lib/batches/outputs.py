"""Output files of a run: the executed notebook under its final name, or the failed one with its error."""

import json
from pathlib import Path

from lib import files
from lib.batches import batch, finished


def part_file(run: batch.Run) -> Path:
    """Path to which papermill writes the notebook while it runs."""
    return finished.output(run).with_name(f".{run.name}.part.ipynb")


def failed(run: batch.Run) -> Path:
    """Path of a failed notebook, executed up to the error."""
    return finished.output(run).with_name(f"{run.name}.failed.ipynb")


def discard_halves(run: batch.Run):
    """Remove temporary files of a killed sweep."""
    part_file(run).unlink(missing_ok=True)
    for target in (finished.record(run), finished.state(run)):
        for half in target.parent.glob(f".{target.name}.*.tmp"):
            half.unlink(missing_ok=True)


def discard_results(run: batch.Run):
    """Remove the results that a run is about to replace: if it fails, a report shows a gap instead of old numbers."""
    for old in (finished.state(run), finished.record(run), finished.output(run), failed(run)):
        old.unlink(missing_ok=True)


def cause(run: batch.Run, status: int | None, log) -> tuple[str, str]:
    """Name and text of the error behind a worker's end, where the notebook itself shows none."""
    if status is None:
        return "TimeoutError", f"stopped after {run.timeout:g} s; a longer `timeout` in the batch file is allowed."
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    if status < 0 or not lines:
        return "ChildProcessError", f"the notebook's process ended with status {status}; out of memory, perhaps."
    name, _, text = lines[-1].partition(": ")
    return (name, text) if name.isidentifier() else ("RuntimeError", lines[-1])


def keep_failure(run: batch.Run, why: tuple[str, str]) -> str:
    """Keep a failed notebook, with the error in the cell where it stopped; returns the error in one line."""
    try:
        document = json.loads(part_file(run).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # killed before its first save, or during one
        document = _unexecuted(run.notebook)
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    if not cells:  # a notebook that can hold the error
        cells = [{"cell_type": "code", "metadata": {}, "execution_count": None, "source": "", "outputs": []}]
        document["cells"] += cells
    begun = [cell for cell in cells if cell["metadata"].get("papermill", {}).get("start_time")] or cells[:1]
    shown = [output for cell in begun for output in cell["outputs"] if output["output_type"] == "error"]
    if not shown:
        error = {"output_type": "error", "ename": why[0], "evalue": why[1], "traceback": [": ".join(why)]}
        begun[-1]["outputs"].append(error)
        shown = [error]
    keep(document, run, failed(run))
    return " ".join(f"{shown[-1]['ename']}: {shown[-1]['evalue']}".split())[:200]


def _unexecuted(path: Path) -> dict:
    """A notebook without its outputs; an empty one where the file is no notebook any more."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        document["cells"] = [c | {"outputs": []} if c["cell_type"] == "code" else c for c in document["cells"]]
    except (OSError, ValueError, TypeError, KeyError):
        document = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    return document


def keep(document: dict, run: batch.Run, target: Path):
    """Give the executed notebook its final name, without the paths of this machine that papermill notes in it."""
    noted = document["metadata"].get("papermill", {})
    noted.pop("output_path", None)
    noted["input_path"] = run.notebook.name
    files.write_text(target, json.dumps(document, indent=1, ensure_ascii=False))
    part_file(run).unlink(missing_ok=True)
