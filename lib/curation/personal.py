"""Replaces what identifies a person: e-mail and IP addresses, numbers of telephones, cards and social insurance.

Found by datafog's rules, without a model: names and postal addresses stay. Telephone numbers and social insurance are
those of few countries. Nine digits alone, which datafog takes for a number of social insurance, are mostly part of an
address or a hash, and stay.
"""

from collections.abc import Iterable, Iterator

from lib import files
from lib.curation.document import Document
from lib.curation.tally import Tally

KINDS = ("EMAIL", "PHONE", "IP_ADDRESS", "CREDIT_CARD", "SSN")


def stage(
    documents: Iterable[Document], *, tally: Tally | None = None, kinds: Iterable[str] = KINDS
) -> Iterator[Document]:
    """The documents with `[EMAIL]`, `[PHONE]` ... in place of what was found."""
    tally, kinds = tally or Tally("personal"), list(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is unknown; {files.choices(kind, KINDS)}")
    for document in documents:
        text, found = replaced(document.text, kinds)
        yield tally.keep(document.saying(text), document, ", ".join(found))


def replaced(text: str, kinds: Iterable[str] = KINDS) -> tuple[str, list[str]]:
    """(The text with its kind in place of each find, the kinds that were found)."""
    from datafog import engine  # loads for this stage alone

    found = engine.scan(text, engine="regex", entity_types=list(kinds)).entities
    found = sorted(
        (each for each in found if each.type != "SSN" or not each.text.isdigit()), key=lambda each: each.start
    )
    parts, done = [], 0
    for each in found:
        if each.start >= done:
            parts += [text[done : each.start], f"[{each.type}]"]
            done = each.end
    return "".join([*parts, text[done:]]), sorted({each.type for each in found})
