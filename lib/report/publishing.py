"""Publishes the tables of a study: one command line for all of them, and what each published file says of its run."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from lib import files, machine, published


def about(notebook: str, batch: str, protocol: str) -> dict:
    """What a published file says beside its tables: where they are shown and made, on what machine, at which commit."""
    commit = machine.commit()["commit"] or "unknown"
    return {
        "notebook": notebook, "batch": batch, "machine": machine.label(), "commit": commit, "protocol": protocol,
    }  # fmt: skip


def main(
    name: str, module: str, presets: Iterable[str], document: Callable[..., dict], arguments: list[str] | None
) -> int:
    """Write `document(preset, folder, notes)` as the published file `name`, with the notes it had; the exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m lib.report.{module}", description="Publish a study.")
    parser.add_argument("preset", help=f"one of {', '.join(presets)}")
    parser.add_argument("--folder", type=Path, help="of the study")
    given = parser.parse_args(arguments)
    path = published.folder() / f"{name}.json"
    notes = json.loads(path.read_text())["notes"] if path.exists() else []
    try:
        found = document(given.preset, given.folder, notes)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    files.write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(found['tables'])} tables are in {files.place(path)}")
    return 0
