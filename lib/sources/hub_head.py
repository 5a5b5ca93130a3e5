"""The first documents of any data set of the Hugging Face Hub: streamed once, and kept as a file of one's own.

Data sets to train on are larger than a disk (SlimPajama has 627 billion tokens), so only as much is read as is asked
for. It lies in `data/cache/hub` as JSONL, whole or absent, named by data set, commit, split and size; from there it is
read like any local file. The folder may be deleted at any time.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from lib import files, progress, tokenization
from lib.sources import file_formats, hub

CHARACTERS = 64 << 20  # of a split, where nothing else is said
EVERY = 20  # one document of so many of "train" goes to each split that the data set does not have
BYTES = 1.25  # of JSONL for a character of text; checked before the work, and again by the disk itself
_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_PARTS = {"train": ("train",), "valid": ("validation", "valid", "val", "dev"), "test": ("test",)}


def is_name(name: str) -> bool:
    """Whether `name` may be one of the Hub: OWNER/NAME, or OWNER/NAME:CONFIGURATION, and no path of a text file."""
    return bool(_NAME.fullmatch(name)) and not name.endswith(file_formats.ENDINGS)


def fetch(name: str, split: str, characters: int = CHARACTERS) -> tuple[Path, str]:
    """(File of the first documents of a split, `characters` or a document more; its origin).

    A split that the data set does not have is made of every `EVERY`th document of "train", which "train" then lacks.
    Raises ConnectionError where the Hub does not give it, OSError where the disk is too
    small, and ValueError for rows without text.
    """
    if characters < 1:
        raise ValueError(f"characters={characters}; 1 or more are allowed; ask more.")
    dataset, _, configuration = name.partition(":")
    commit = hub.revision(dataset)
    if commit is None:
        raise ConnectionError(f"{dataset} cannot be reached")
    about = {"name": name, "commit": commit, "split": split, "characters": characters, "format": 1}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path = files.cache() / "hub" / f"{dataset.replace('/', '--')}-{split}-{digest}.jsonl"
    said = path.with_suffix(".json")
    if not (path.is_file() and said.is_file()):
        files.check_writable(path, int(BYTES * characters))
        found, part = rows(dataset, configuration or None, split, commit)
        count = _write(path, found, characters, dataset)
        files.write_text(said, json.dumps({**about, "part": part, "documents": count}, indent=1))
    note = json.loads(said.read_text())
    shown = f"Hub {name} {note['part']} at {commit[:12]}, {note['documents']:,} documents from the start, streamed"
    return path, shown


def rows(dataset: str, configuration: str | None, split: str, commit: str) -> tuple[Iterable[dict], str]:
    """(Rows of a data set as they stream, which they are in words); ConnectionError where the Hub gives none."""
    from datasets import get_dataset_split_names, load_dataset  # loads slowly, only where the Hub is asked
    from huggingface_hub.errors import HTTPError  # as above

    try:
        there = get_dataset_split_names(dataset, configuration, revision=commit)
        chosen = {each: next((name for name in names if name in there), None) for each, names in _PARTS.items()}
        part = chosen[split] or chosen["train"] or there[0]
        found = load_dataset(dataset, configuration, split=part, revision=commit, streaming=True)
    except (OSError, HTTPError, ImportError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConnectionError(reason) from error
    missing = [each for each in ("valid", "test") if chosen[each] is None]
    if split in missing:
        kept, shown = [missing.index(split)], f"{part}, one document of {EVERY},"
    elif split == "train" and missing:
        kept, shown = range(len(missing), EVERY), f"{part} without {len(missing)} documents of {EVERY}"
    else:
        kept, shown = range(EVERY), part
    return (row for number, row in enumerate(found) if number % EVERY in kept), shown


def _write(path: Path, rows: Iterable[dict], characters: int, dataset: str) -> int:
    """Write the texts of `rows` through a temporary name; answers their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, count = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"), 0
    try:
        with open(temporary, "xb") as file, progress.bar(total=characters, desc=dataset, unit="B") as bar:
            for text in _texts(rows, dataset):
                file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
                count += 1
                bar.update(len(text))
                characters -= len(text)
                if characters <= 0:
                    break
            file.flush()
            os.fsync(file.fileno())
        if not count:
            raise ValueError(f"{dataset} gave no text; documents with words are needed; choose another data set.")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _texts(rows: Iterable[dict], dataset: str) -> Iterator[str]:
    field = ""
    for number, row in enumerate(rows):
        where = f"row {number} of {dataset}"
        field = field or file_formats.field_of(row, where)
        text = row.get(field)
        if not isinstance(text, str):
            raise ValueError(
                f"{where} has no text in its field {field!r}; every row needs it; choose another data set."
            )
        if text.strip():
            yield tokenization.check(text, where)
