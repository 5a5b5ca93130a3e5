"""Shards that a stage writes: a file of documents, and beside it the tally, which says that the file is whole."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from lib import files
from lib.curation.document import Document
from lib.curation.tally import Tally


def write(path: Path, documents: Iterable[Document], tally: Tally) -> None:
    """Write documents one by one through a temporary name, then the `tally` that their stage filled meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, digest = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"), hashlib.sha256()
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of a run that was killed
        leftover.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:
            for document in documents:
                line = document.line().encode() + b"\n"
                digest.update(line)
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    state = {"sha256": digest.hexdigest(), "tally": tally.state()}
    files.write_text(path.with_suffix(".tally.json"), json.dumps(state, ensure_ascii=False, indent=1))


def known(path: Path) -> Tally | None:
    """The tally of a shard that is there and whole, else None; a file that was changed since is written again."""
    try:
        state = json.loads(path.with_suffix(".tally.json").read_text(encoding="utf-8"))
        return Tally.of(state["tally"]) if files.sha256(path) == state["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
