"""Documents of web archives: the text records of WET files, and the pages of WARC files without their markup.

ISO 28500; read by warcio. A page is what Beautiful Soup finds in its HTML outside of scripts and styles, a line for
each block: plain, and with all that surrounds the article. Line deduplication and the filters are for that.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

from lib.curation.document import Document
from lib.files import place
from lib.sources import file_formats

ENDINGS = (".warc", ".warc.gz", ".wet", ".wet.gz")
_UNSEEN = ("script", "style", "noscript", "template", "head")
_END = b"\r\n\r\n"  # behind each record
_KEPT = {"WARC-Target-URI": "url", "WARC-Date": "date"}


def read(path: Path) -> Iterator[tuple[str, Document]]:
    """("FILE record N", document) of each text and each HTML page; others are passed over.

    Raises ValueError for a file that is cut short or no archive, and for a record longer than a line of JSONL may be.
    A compressed file that was cut exactly between two records looks whole.
    """
    from warcio import archiveiterator, exceptions  # loads for archives alone

    _check_end(path)
    number = 0
    try:
        with open(path, "rb") as file:
            for record in archiveiterator.ArchiveIterator(file):
                number += 1
                if found := _document(record, where := f"{place(path)} record {number}"):
                    yield where, found
    except (exceptions.ArchiveLoadFailed, EOFError, OSError) as error:
        raise ValueError(
            f"{place(path)} record {number + 1} can't be read ({str(error).strip().splitlines()[0]}); WARC is needed, "
            "each record compressed for itself or none; copy the file again."
        ) from error
    if not number:
        raise ValueError(f"{place(path)} has no records; one or more are needed; copy the file again.")


def _check_end(path: Path) -> None:
    """ValueError for a file that does not end where a record does, which warcio passes over in silence."""
    tail, inside, gzipped, begun = b"", zlib.decompressobj(31), path.suffix == ".gz", False
    with open(path, "rb") as file:
        while block := file.read(file_formats.BLOCK):
            while block:
                try:
                    some = inside.decompress(block) if gzipped else block
                except zlib.error as error:
                    raise ValueError(f"{place(path)} is no gzip file ({error}); copy it again.") from None
                tail = (tail + some)[-len(_END) :]
                block, begun = (inside.unused_data, not inside.eof) if gzipped else (b"", False)
                inside = zlib.decompressobj(31) if gzipped and inside.eof else inside
    if tail != _END or begun:
        raise ValueError(
            f"{place(path)} is cut short: a WARC file ends with the blank lines behind a record; copy it again."
        )


def _document(record, where: str) -> Document | None:
    kind = record.rec_type
    page = kind == "response" and record.http_headers is not None
    page = page and (record.http_headers.get_header("Content-Type") or "").lower().startswith("text/html")
    if kind != "conversion" and not page:
        _content(record, where)  # to its end, so that one that is cut short is seen
        return None
    content = _content(record, where)
    text = _text(content) if page else _decoded(content, where)
    known = {name: record.rec_headers.get_header(header) for header, name in _KEPT.items()}
    named = record.rec_headers.get_header("WARC-Record-ID").strip("<>")
    return Document(text, named, {name: value for name, value in known.items() if value})


def _content(record, where: str) -> bytes:
    """A record's content; ValueError where it is not as long as it says."""
    if (record.length or 0) > file_formats.LONGEST:
        raise ValueError(
            f"{where} has {record.length / 1e6:,.0f} MB; up to {file_formats.LONGEST / 1e6:,.0f} are read as one "
            "document; leave it out."
        )
    raw = record.raw_stream.read() if record.http_headers is None else record.content_stream().read()
    if getattr(record.raw_stream, "limit", 0) > 0:
        raise ValueError(f"{where} is cut short, {record.raw_stream.limit:,} bytes are missing; copy the file again.")
    return raw


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8: byte {content[error.start]:#04x} at its offset {error.start}; text records must be "
            "UTF-8; leave it out."
        ) from None


def _text(html: bytes) -> str:
    """What a page shows, a line for each block; its own charset, or what Beautiful Soup makes of the bytes."""
    import bs4  # loads for pages alone

    soup = bs4.BeautifulSoup(html, "html.parser")
    for unseen in soup.find_all(_UNSEEN):
        unseen.decompose()
    lines = (" ".join(line.split()) for line in soup.get_text("\n").split("\n"))
    return "\n".join(filter(None, lines))
