"""Documents from files: `.txt`, `.jsonl` and `.parquet`, one file or a folder with a file for each split."""

from pathlib import Path

from lib.files import place
from lib.sources import file_formats
from lib.sources.file_formats import ENDINGS
from lib.sources.streams import Documents, Part

SPLITS = {"train": "train", "valid": "val", "test": "test"}  # how the names of a split's files begin
IN_MEMORY = 64 << 20  # bytes of files up to which documents are held in memory; larger ones are streamed
_PARTS = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}


def documents(path: Path, split: str, in_memory: int = IN_MEMORY) -> tuple[list[str] | Documents, str]:
    """The documents of a split from a file or folder, and a description of their origin.

    A file whose name begins with train, val or test is that split, whole; any other is cut 80/10/10 in order, a `.txt`
    at line ends. A folder holds `SPLIT.txt` (`.jsonl`, `.parquet`), or several `SPLIT*` files, read in order of name,
    or a single file. Files of more than `in_memory` bytes in all are not read into memory: then `Documents` read them
    anew each time. Raises `ValueError` for what cannot be read as text, `FileNotFoundError` without such a file.
    """
    if path.is_file():
        return _single(path, split, in_memory)
    inside = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
    found = [file for file in inside if _split_of(file) == split]
    exact = [file for file in found if file.stem in (split, SPLITS[split], "validation")]
    if len(inside) == 1 and _split_of(inside[0]) is None:
        return _single(inside[0], split, in_memory)
    if not found:
        raise FileNotFoundError(
            f"{place(path)} has no {SPLITS[split]}*{'|'.join(ENDINGS)} for split={split!r}; "
            f"name one of its files instead: {', '.join(file.name for file in inside) or 'it has none'}."
        )
    chosen = exact[:1] or found
    shown = place(chosen[0]) + (f" and {len(chosen) - 1} more" if len(chosen) > 1 else "")
    return _held([Part(file) for file in chosen], in_memory), shown + _field(chosen[0])


def every(folder: Path, split: str, in_memory: int = IN_MEMORY) -> tuple[list[str] | Documents, str]:
    """As `documents`, of a folder of files that are no splits: each is cut 80/10/10, so that all are in every split."""
    found = sorted(file for file in folder.iterdir() if file.suffix in ENDINGS)
    parts = [Part(file, *_range(_count(file)[0], split)) for file in found]
    shown = f"{place(folder)}, {len(found)} files, each cut 80/10/10 in order, as {split}"
    return _held(parts, in_memory), shown


def read(path: Path, in_memory: int = IN_MEMORY) -> tuple[list[str] | Documents, str]:
    """All documents of one file that are not blank, and ", field NAME" where rows have several fields."""
    return _held([Part(path)], in_memory), _field(path)


def part(items: list, split: str) -> list:
    """The items of a split of unsplit data: 80/10/10 % in order."""
    first, last = _range(len(items), split)
    return items[first:last]


def _range(count: int, split: str) -> tuple[int, int]:
    first, last = (round(share * count) for share in _PARTS[split])
    return first, last


def _single(path, split, in_memory):
    own = _split_of(path)
    if own not in (None, split):
        raise ValueError(f"{place(path)} is a {own} file by its name, split={split!r} was given; use split={own!r}.")
    if own == split:
        found, field = read(path, in_memory)
        return found, place(path) + field
    field, (total, unit) = _field(path), _count(path)
    first, last = _range(total, split)
    found = _held([Part(path, first, last)], in_memory)
    return found, f"{place(path)}{field}, {last - first} of {total} {unit} as {split} (cut 80/10/10 in order)"


def _held(parts: list[Part], in_memory: int) -> list[str] | Documents:
    found = Documents(*parts)
    size = sum(part.path.stat().st_size for part in parts)
    return found if size > in_memory else list(found)


def _count(path: Path) -> tuple[int, str]:
    """How many lines, or documents that are not blank, a file has."""
    if path.suffix != ".txt":
        return sum(bool(text.strip()) for _, text in file_formats.rows(path)), "documents"
    lines, end, blank = 0, "\n", True
    for block in filter(None, file_formats.blocks(path)):
        lines, end, blank = lines + block.count("\n"), block[-1], blank and not block.strip()
    return 0 if blank else lines + (end != "\n"), "lines"


def _field(path: Path) -> str:
    """What an origin says of the field that rows keep their text in, where a file has rows."""
    first = None if path.suffix == ".txt" else next(file_formats.rows(path), None)
    return f", field {first[0]}" if first else ""


def _split_of(path):
    return next((split for split, start in SPLITS.items() if path.name.lower().startswith(start)), None)
