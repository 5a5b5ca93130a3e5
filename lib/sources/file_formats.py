"""What text files hold, read piece by piece: `.txt` in blocks, the rows of `.jsonl` and `.parquet` one by one."""

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from lib import tokenization
from lib.files import place

FIELDS = ("text", "content", "document", "passage")  # fields for a row's text; the first present one is used
ENDINGS = (".txt", ".jsonl", ".parquet")
BLOCK = 1 << 20  # bytes read at once
LONGEST = 1 << 28  # bytes of a line of JSONL: it is read as one, and a row is one document
_ROWS = 256  # of a parquet file at once, or as many as take some megabytes


def rows(path: Path) -> Iterator[tuple[str, str]]:
    """(name of its field, text) of each row of a `.jsonl` or `.parquet`; ValueError for rows without text."""
    if path.suffix == ".jsonl":
        return _jsonl(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    raise ValueError(f"{place(path)} ends in {path.suffix!r}; texts are {', '.join(ENDINGS)}; convert it.")


def blocks(path: Path) -> Iterator[str]:
    """The UTF-8 text of a file in blocks, its line ends as they are; ValueError names the first byte that is not UTF-8.

    A byte order mark at the start is left out.
    """
    decoder, read, lines, begun = codecs.getincrementaldecoder("utf-8")(), 0, 0, False
    with open(path, "rb") as file:
        while True:
            content = file.read(BLOCK)
            read += len(content)
            try:
                text = decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                before = lines + error.object.count(b"\n", 0, error.start)
                raise _not_utf8(path, error, read - len(error.object), before + 1) from None
            lines += text.count("\n")
            if text:
                yield text if begun else text.removeprefix("\ufeff")
                begun = True
            if not content:
                return


def objects(path: Path) -> Iterator[tuple[str, dict]]:
    """("FILE line N", object) of each line of JSONL that is not blank.

    `ValueError` names a line that is no object, and one with half a character: an escape such as "\\ud83d" alone.
    """
    for number, line in enumerate(_lines(path), 1):
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


def records(path: Path) -> Iterator[tuple[str, dict]]:
    """("FILE line N", all fields) of each row of a `.jsonl`, and ("FILE row N", all columns) of a `.parquet`."""
    if path.suffix == ".jsonl":
        yield from objects(path)
    else:
        for number, (row, _) in enumerate(_parquet_rows(path, list), 1):
            yield f"{place(path)} row {number}", row


def instruction(row: dict) -> str | None:
    """The document that an instruction row makes (Alpaca's form): instruction, input where there is one, and output.

    None for any other row, and for one whose parts are no text.
    """
    parts = [row.get("instruction"), row.get("input") or "", row.get("output")]
    return "\n\n".join(part for part in parts if part) if all(isinstance(part, str) for part in parts) else None


def field_of(names, where: str) -> str:
    """The first of `FIELDS` among the names of a row's fields."""
    for field in FIELDS:
        if field in names:
            return field
    raise ValueError(
        f"{where} has the fields {', '.join(map(str, names)) or 'none'}; "
        f"a text is one of {', '.join(FIELDS)}; rename one."
    )


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, which end at "\\n" alone."""
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
            if len(line) > LONGEST:
                raise ValueError(
                    f"{place(path)} line {number} has more than {LONGEST / 1e6:,.0f} MB; a line is one row, with one "
                    "document; write shorter ones, or the text as a .txt, which is read in pieces however long a line."
                )
            try:
                text = line.removesuffix(b"\n").decode()
            except UnicodeDecodeError as error:
                raise _not_utf8(path, error, offset, number) from None
            offset += len(line)
            yield text if number > 1 else text.removeprefix("\ufeff")


def _not_utf8(path: Path, error: UnicodeDecodeError, offset: int, line: int) -> ValueError:
    return ValueError(
        f"{place(path)} is not UTF-8: byte {error.object[error.start]:#04x} at offset {offset + error.start}, line "
        f"{line}; texts must be UTF-8; convert it, for instance with iconv."
    )


def _jsonl(path: Path) -> Iterator[tuple[str, str]]:
    field = ""
    for where, row in objects(path):
        if made := instruction(row):
            row = {"text": made} if not set(FIELDS) & set(row) else row
        field = field or field_of(row, where)
        if not isinstance(row.get(field), str):
            raise ValueError(f"{where} has no text in its field {field!r}; every line needs it; mend or drop it.")
        yield field, row[field]


def _parquet(path: Path) -> Iterator[tuple[str, str]]:
    for row, field in _parquet_rows(path, lambda names: [field_of(names, place(path))]):
        (text,) = row.values()
        if not (text is None or isinstance(text, str)):
            raise ValueError(
                f"{place(path)} keeps no text in its column {field[0]!r}; it must hold strings; convert it."
            )
        if text is not None:
            yield field[0], text


def _parquet_rows(path: Path, choose: Callable[[list[str]], list[str]]) -> Iterator[tuple[dict, list[str]]]:
    """(row, names of its columns) of a parquet file; `choose` says which of its columns are read."""
    import pyarrow  # 0.1 s, only for Parquet files
    from pyarrow import parquet  # as above

    columns: list[str] = []
    try:
        # a column is read through a small buffer: a group of rows may be as large as the file
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=BLOCK) as file:
            columns = choose(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_at_once(file.metadata), columns=columns, use_threads=False):
                yield from ((row, columns) for row in batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise ValueError(f"{place(path)} is no readable parquet file ({error}); copy it again.") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place(path)} keeps bytes that are not UTF-8 in its column {', '.join(map(repr, columns))} "
            f"({error.reason}); texts must be UTF-8; convert it."
        ) from None


def _at_once(metadata) -> int:
    """How many rows of a parquet file are read at once: fewer where they are long."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    longest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(_ROWS, 8 * BLOCK // max(1, longest)))
