"""Token ids of a text that comes in pieces: those that the tokenizer makes of the whole text at once, to the last one.

The text is tokenized in chunks that overlap. In an overlap both chunks make the same tokens of the same characters,
except near their own ends; there, in the middle of a run of tokens that are alike, one goes on from the first chunk to
the second. A tokenizer knows nothing of what is far away: it splits text at words, scanning from the left, and merges
neighbours within them. Where two chunks agree nowhere (one run of thousands of digits), both are tokenized as one.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from lib import tokenization
from lib.sources import streams

CHUNK = 1 << 17  # characters tokenized as one
OVERLAP = 1 << 12  # characters that two chunks have in common
AT_ONCE = 8  # chunks given to the tokenizer together: it spreads them over the cores
ALIKE = 8  # tokens on each side of the place where one chunk ends and the next goes on
LONGEST = 64  # chunks that are tokenized as one where they agree nowhere


@dataclass(frozen=True)
class Chunk:
    """Text from character `start` of the whole on, and its tokens: columns id, first character, one after the last."""

    start: int
    text: str
    tokens: np.ndarray  # int64 [tokens, 3]

    @property
    def end(self) -> int:
        """Place of the first character after the chunk."""
        return self.start + len(self.text)


def ids(tokenizer, pieces: Iterable[str], *, chunk: int = CHUNK, overlap: int = OVERLAP) -> Iterator[tuple]:
    """(token ids int64 [some], up to which character) of the text that `pieces` are together, one after another.

    No special tokens are added. tokenizer: one of transformers over `tokenizers`, which tells where in the text a
    token lies. chunk: characters, more than twice those of `overlap`. Raises ValueError for text in which `LONGEST`
    chunks agree nowhere.
    """
    made = _tokenized(tokenizer, _cut(pieces, chunk, overlap))
    here, begin = next(made, None), 0  # the chunk that is read, and its first token that was not given yet
    for after in made:
        seam = _seam(here, after)
        if seam is None:
            here = _one(tokenizer, here, after, begin, LONGEST * chunk)
            continue
        yield here.tokens[begin : seam[0], 0], int(here.tokens[seam[0], 1])
        here, begin = after, seam[1]
    if here is not None:
        yield here.tokens[begin:, 0], here.end


def of_documents(
    tokenizer, documents: Iterable[str], end: int, *, chunk: int = CHUNK, overlap: int = OVERLAP
) -> Iterator[tuple]:
    """(token ids int64 [some], characters until there) of `documents`, each for itself, with the token `end` behind it.

    Short ones are given to the tokenizer together; of a long one (of streams, say) a few chunks are in memory. Blank
    documents are left out. Other arguments and errors are those of `ids`.
    """
    short, done = [], 0
    for document in streams.in_pieces(documents):
        pieces, begun, size = iter(document), [], 0
        while size <= chunk and (piece := next(pieces, None)) is not None:
            begun.append(piece)
            size += len(piece)
        if size <= chunk and "".join(begun).strip():
            short.append("".join(begun))
        if short and (size > chunk or sum(map(len, short)) > AT_ONCE * chunk):
            done += sum(map(len, short))
            yield _together(tokenizer, short, end), done
            short = []
        if size > chunk:
            there = done
            for some, until in ids(tokenizer, itertools.chain(begun, pieces), chunk=chunk, overlap=overlap):
                done = there + until
                yield some, done
            yield np.array([end]), done
    if short:
        yield _together(tokenizer, short, end), done + sum(map(len, short))


def _together(tokenizer, short: list[str], end: int) -> np.ndarray:
    found = tokenization.ids(tokenizer, short, False)
    return np.array([token for tokens in found for token in (*tokens, end)], np.int64)


def _cut(pieces: Iterable[str], chunk: int, overlap: int) -> Iterator[tuple[int, str]]:
    """(place of its first character, text) of overlapping chunks."""
    start, held = 0, ""
    for piece in pieces:
        held += piece
        place = 0
        while len(held) - place >= chunk:
            yield start + place, held[place : place + chunk]
            place += chunk - overlap
        start, held = start + place, held[place:]
    if held and (not start or len(held) > overlap):
        yield start, held


def _tokenized(tokenizer, cut: Iterator[tuple[int, str]]) -> Iterator[Chunk]:
    while some := list(itertools.islice(cut, AT_ONCE)):
        yield from _chunks(tokenizer, some)


def _chunks(tokenizer, some: Iterable[tuple[int, str]]) -> list[Chunk]:
    starts, texts = zip(*some)
    found = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [
        Chunk(start, text, np.column_stack([np.array(ids, np.int64), np.array(where, np.int64).reshape(-1, 2) + start]))
        for start, text, ids, where in zip(starts, texts, found["input_ids"], found["offset_mapping"])
    ]


def _seam(one: Chunk, other: Chunk) -> tuple[int, int] | None:
    """Tokens of `one` and of `other` from which on both are alike, as near to the middle of the overlap as may be."""
    middle = (other.start + one.end) / 2
    ours = np.flatnonzero(one.tokens[:, 1] >= other.start)
    for place in ours[np.argsort(np.abs(one.tokens[ours, 1] - middle), kind="stable")]:
        begin = one.tokens[place, 1]
        there = int(np.searchsorted(other.tokens[:, 1], begin))
        if place and one.tokens[place - 1, 1] == begin:
            continue  # a later token of the same character
        here, beside = (_around(tokens, at) for tokens, at in ((one.tokens, int(place)), (other.tokens, there)))
        if here is not None and beside is not None and np.array_equal(here, beside):
            return int(place), there
    return None


def _around(tokens: np.ndarray, place: int) -> np.ndarray | None:
    """The tokens on both sides of `place`; None too near to an end."""
    return tokens[place - ALIKE : place + ALIKE] if ALIKE <= place <= len(tokens) - ALIKE else None


def _one(tokenizer, one: Chunk, other: Chunk, begin: int, longest: int) -> Chunk:
    """Two chunks that agree nowhere as one; what of it was given before must stay as it was."""
    refuse = partial(
        "{} characters from {:,} on are tokenized alike nowhere where they are cut ({}); texts with words or lines in "
        "them can be read in pieces; mend the text, or load it with a larger in_memory.".format
    )
    text = one.text + other.text[one.end - other.start :]
    if len(text) > longest:
        raise ValueError(refuse(f"{len(text):,}", one.start, type(tokenizer).__name__))
    found = _chunks(tokenizer, [(one.start, text)])[0]
    if not np.array_equal(found.tokens[:begin], one.tokens[:begin]):
        raise ValueError(refuse(f"{len(text):,}", one.start, type(tokenizer).__name__))
    return found
