"""Documents from files: `.txt`, `.jsonl` and `.parquet`, one file or a folder with a file for each split."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from lib import tokenization
from lib.files import place

FIELDS = ("text", "content", "document", "passage")  # fields for a row's text; the first present one is used
ENDINGS = (".txt", ".jsonl", ".parquet")
SPLITS = {"train": "train", "valid": "val", "test": "test"}  # how the names of a split's files begin
_PARTS = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}


def documents(path: Path, split: str) -> tuple[list[str], str]:
    """The documents of a split from a file or folder, and a description of their origin.

    A file whose name begins with train, val or test is that split, whole; any other is cut 80/10/10 in order, a `.txt`
    at line ends. A folder holds `SPLIT.txt` (`.jsonl`, `.parquet`), or several `SPLIT*` files, read in order of name,
    or a single file. Raises `ValueError` for what cannot be read as text, `FileNotFoundError` without such a file.
    """
    if path.is_file():
        return _single(path, split)
    inside = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
    found = [file for file in inside if _split_of(file) == split]
    exact = [file for file in found if file.stem in (split, SPLITS[split], "validation")]
    if len(inside) == 1 and _split_of(inside[0]) is None:
        return _single(inside[0], split)
    if not found:
        raise FileNotFoundError(
            f"{place(path)} has no {SPLITS[split]}*{'|'.join(ENDINGS)} for split={split!r}; "
            f"name one of its files instead: {', '.join(file.name for file in inside) or 'it has none'}."
        )
    parts = [read(file) for file in exact[:1] or found]
    shown = place((exact or found)[0]) + (f" and {len(parts) - 1} more" if len(parts) > 1 else "")
    return [document for part, _ in parts for document in part], shown + parts[0][1]


def read(path: Path) -> tuple[list[str], str]:
    """All documents of one file that are not blank, and ", field NAME" where rows have several fields."""
    if path.suffix == ".txt":
        found, field = [decode(path)], ""
    elif path.suffix == ".jsonl":
        found, field = _jsonl(path)
    elif path.suffix == ".parquet":
        found, field = _parquet(path)
    else:
        raise ValueError(f"{place(path)} ends in {path.suffix!r}; texts are {', '.join(ENDINGS)}; convert it.")
    return [document for document in found if document.strip()], field and f", field {field}"


def decode(path: Path) -> str:
    """The UTF-8 text of a file, its line ends as they are; `ValueError` names the first byte that is not UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{place(path)} is not UTF-8: byte {content[error.start]:#04x} at offset {error.start}, line {line}; "
            "texts must be UTF-8; convert it, for instance with iconv."
        ) from None


def field_of(names, where: str) -> str:
    """The first of `FIELDS` among the names of a row's fields."""
    for field in FIELDS:
        if field in names:
            return field
    raise ValueError(
        f"{where} has the fields {', '.join(map(str, names)) or 'none'}; "
        f"a text is one of {', '.join(FIELDS)}; rename one."
    )


def _single(path, split):
    own = _split_of(path)
    if own not in (None, split):
        raise ValueError(f"{place(path)} is a {own} file by its name, split={split!r} was given; use split={own!r}.")
    found, field = read(path)
    if own == split:
        return found, place(path) + field
    if path.suffix == ".txt":
        lines = [line for line in re.split(r"(?<=\n)", "".join(found)) if line]
        found, unit, total = part(lines, split), "lines", len(lines)
        cut, found = len(found), ["".join(found)]
    else:
        total, unit = len(found), "documents"
        found = part(found, split)
        cut = len(found)
    return found, f"{place(path)}{field}, {cut} of {total} {unit} as {split} (cut 80/10/10 in order)"


def instruction(row: dict) -> str | None:
    """The document that an instruction row makes (Alpaca's form): instruction, input where there is one, and output.

    None for any other row, and for one whose parts are no text.
    """
    parts = [row.get("instruction"), row.get("input") or "", row.get("output")]
    return "\n\n".join(part for part in parts if part) if all(isinstance(part, str) for part in parts) else None


def part(items: list, split: str) -> list:
    """The items of a split of unsplit data: 80/10/10 % in order."""
    first, last = (round(share * len(items)) for share in _PARTS[split])
    return items[first:last]


def _split_of(path):
    return next((split for split, start in SPLITS.items() if path.name.lower().startswith(start)), None)


def objects(text: str, path: Path) -> Iterator[tuple[str, dict]]:
    """("FILE line N", object) of each line of JSONL that is not blank.

    `ValueError` names a line that is no object, and one with half a character: an escape such as "\\ud83d" alone.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{place(path)} line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON ({error}); each line is one JSON object; mend or drop it.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where} is a {type(row).__name__}; each line is one JSON object; mend or drop it.")
        if "\\u" in line:  # only an escape can write half a character: the file itself is UTF-8
            tokenization.check(json.dumps(row, ensure_ascii=False), where)
        yield where, row


def _jsonl(path):
    found, field = [], ""
    for where, row in objects(decode(path), path):
        if made := instruction(row):
            row = {"text": made} if not set(FIELDS) & set(row) else row
        field = field or field_of(row, where)
        if not isinstance(row.get(field), str):
            raise ValueError(f"{where} has no text in its field {field!r}; every line needs it; mend or drop it.")
        found.append(row[field])
    return found, field


def _parquet(path):
    import pyarrow  # 0.1 s, only for Parquet files
    from pyarrow import parquet  # as above

    try:
        field = field_of(parquet.read_schema(path).names, place(path))
        rows = parquet.read_table(path, columns=[field]).column(field).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{place(path)} is no readable parquet file ({error}); copy it again.") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place(path)} keeps bytes that are not UTF-8 in its column {field!r} ({error.reason}); texts must be "
            "UTF-8; convert it."
        ) from None
    if not all(row is None or isinstance(row, str) for row in rows):
        raise ValueError(f"{place(path)} keeps no text in its column {field!r}; it must hold strings; convert it.")
    return [row for row in rows if row is not None], field
