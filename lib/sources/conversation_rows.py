"""Rows of conversations where they lie: `.jsonl`, `.json` or `.parquet` files, folders of these, or the Hub."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from lib import files
from lib.sources import builtin_conversations, file_formats, hub, hub_head

PACKAGED = "packaged"
ROWS = 20_000  # of a data set of the Hub, where nothing else is said
_ENDINGS = (".jsonl", ".json", ".parquet")


def of(
    source: Path | str | Iterable[dict], name: str | None, count: int | None, split: str = "train"
) -> tuple[Iterator, str]:
    """(Pairs of where a row lies and the row, what was read in words) of a path, a Hub data set's name, or rows.

    "packaged" are those of `builtin_conversations`. A relative path is also looked for in THIMBLE_DATA. "OWNER/NAME",
    or "OWNER/NAME:CONFIGURATION", streams the first `count` rows (`ROWS` where None). split: of those two; of others
    all rows are read. Raises FileNotFoundError for what is nowhere, ValueError for other kinds of files.
    """
    if source == PACKAGED:
        found, shown = builtin_conversations.rows(split)
        return itertools.islice(numbered(found, shown), count), shown
    if not isinstance(source, Path | str):
        return itertools.islice(numbered(source, name or "the data"), count), name or "rows"
    path = _path(source)
    if path is None:
        return _of_hub(str(source), count or ROWS, split)
    shown = name or files.place(path)
    found = sorted(each for each in path.rglob("*") if each.suffix in _ENDINGS) if path.is_dir() else [path]
    if not found:
        raise FileNotFoundError(f"{path} has no {', '.join(_ENDINGS)} files; conversations lie in such; look again.")
    return itertools.islice(itertools.chain.from_iterable(map(_rows, found)), count), shown


def is_split(source) -> bool:
    """Whether these data have splits of their own, which `of` reads."""
    return source == PACKAGED or (isinstance(source, Path | str) and _path(source) is None)


def _path(source: Path | str) -> Path | None:
    """The file or folder that is meant; None for a data set of the Hub."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    inside = None if path.is_absolute() or files.data() is None else files.data() / path
    if inside is not None and inside.exists():
        return inside
    if isinstance(source, str) and hub_head.is_name(source) and not source.endswith(_ENDINGS):
        return None
    raise FileNotFoundError(
        f"{source} is not there; a .jsonl, .json or .parquet file, a folder of these, one inside THIMBLE_DATA, or a "
        "data set OWNER/NAME of the Hub, or 'packaged', is needed; check the path."
    )


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    if path.suffix == ".jsonl":
        yield from file_formats.objects(path)
    elif path.suffix == ".parquet":
        import pyarrow.parquet  # loads slowly, and serves this kind of file alone

        batches = pyarrow.parquet.ParquetFile(path).iter_batches(256)
        yield from numbered((row for batch in batches for row in batch.to_pylist()), files.place(path))
    elif path.suffix == ".json":
        yield from numbered(json.loads(path.read_text(encoding="utf-8")), files.place(path))
    else:
        raise ValueError(f"{path} ends in {path.suffix!r}; conversations are .jsonl, .json and .parquet; convert it.")


def _of_hub(name: str, count: int, split: str) -> tuple[Iterator[tuple[str, dict]], str]:
    """The first rows of a data set, pinned to the commit that the Hub holds now."""
    dataset = name.partition(":")[0]
    commit = hub.revision(dataset)
    try:
        if commit is None:
            raise ConnectionError("it cannot be reached")
        rows, part = hub_head.rows(dataset, name.partition(":")[2] or None, split, commit)
    except ConnectionError as error:
        raise FileNotFoundError(
            f"data set {name!r} is no file, and the Hugging Face Hub did not give it ({error}); connect to the "
            "network, or give a file."
        ) from error
    shown = f"Hub {name} {part} at {commit[:12]}, the first {count:,} rows"
    return numbered(itertools.islice(rows, count), f"{name} {part}"), shown


def numbered(rows: Iterable[dict], name: str) -> Iterator[tuple[str, dict]]:
    """Rows, each with where it stands; ValueError for what is no object."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{name} row {number} is a {type(row).__name__}; objects with named columns are allowed.")
        yield f"{name} row {number}", row
