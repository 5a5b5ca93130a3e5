"""Domains: collections of text that a mixture weighs against each other, as rows of tokens, and text kept out."""

import re
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from lib.curation import exact, installed, sources
from lib.curation.document import Document, text_id
from lib.sources import builtin_text
from lib.trainers import byte_pairs

CHARACTERS = 400_000  # of each domain of the installed texts
UNSEEN = 0.1  # of a domain's documents
_NUMBERED = re.compile(r"[-_]?\d+$")


@dataclass(frozen=True, eq=False)
class Domains:
    """Domains by name: their rows of token ids [rows, length], and documents that nobody trains on."""

    tokenizer: object
    rows: dict[str, Tensor]
    unseen: dict[str, list[str]]

    @property
    def names(self) -> list[str]:
        """The domains, in order."""
        return list(self.rows)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each domain [domains]."""
        return np.array([each.numel() for each in self.rows.values()], float)

    @property
    def natural(self) -> np.ndarray:
        """The share of each domain in the tokens of all [domains]."""
        return self.sizes / self.sizes.sum()

    @property
    def uniform(self) -> np.ndarray:
        """The same weight for each domain [domains]."""
        return np.full(len(self.rows), 1 / len(self.rows))


def at_hand(name: str = installed.NAME, characters: int = CHARACTERS) -> dict[str, list[str]]:
    """Texts by domain: a folder's files, those of a common name before their numbers together; or what is installed.

    "installed": descriptions and licences of the packages, source code of Python's library, and its language reference,
    so much of each. Exact copies are left out.
    """
    if name == installed.NAME:
        found = {"reference": builtin_text.documents("train")[0], "code": _code(characters)}
        for document in installed.documents():
            found.setdefault(f"{document.metadata['kind']}s", []).append(document.text)
    else:
        found = {}
        for path in sources.Shards(name).paths:
            texts = [document.text for document in sources.Shards(path)]
            found.setdefault(_NUMBERED.sub("", path.name.partition(".")[0]), []).extend(texts)
    return {domain: _some(texts, characters) for domain, texts in sorted(found.items())}


def make(texts: dict[str, Iterable[str]], *, vocabulary: int = 1024, length: int = 128, seed: int = 0) -> Domains:
    """`Domains` of texts: a tokenizer of all of them, rows of `length` tokens, every tenth document kept out.

    Which documents are kept out depends on their text and `seed`. Raises ValueError for a domain that fills no row, or
    of which nothing can be kept out, and for fewer than two domains.
    """
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} domain(s); a mixture has two or more; give more texts by name.")
    seen, unseen = {}, {}
    for name, some in texts.items():
        ordered = sorted(some, key=lambda text: (xxhash.xxh3_64_intdigest(text.encode(), seed), text))
        count = max(1, round(UNSEEN * len(ordered)))
        unseen[name], seen[name] = ordered[:count], ordered[count:]
    tokenizer = byte_pairs.train([text for some in seen.values() for text in some], vocabulary=vocabulary, seed=seed)
    rows = {name: rows_of(some, tokenizer, length) for name, some in seen.items()}
    for name, each in rows.items():
        if not len(each):
            raise ValueError(
                f"domain {name!r} fills no row of {length} tokens beside what is kept out; one or more are needed; "
                "give more of it, or leave it out."
            )
    return Domains(tokenizer, rows, unseen)


def rows_of(texts: Iterable[str], tokenizer, length: int) -> Tensor:
    """Token ids of documents one behind the other, an end after each, cut into rows [rows, length]."""
    end, found = tokenizer.eos_token_id, []
    for text in texts:
        found += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], end]
    whole = len(found) // length * length
    return torch.tensor(found[:whole], dtype=torch.long).reshape(-1, length)


def _code(characters: int) -> list[str]:
    found, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        found.append(text)
        size += len(text)
        if size > 2 * characters:
            break
    return found


def _some(texts: Iterable[str], characters: int) -> list[str]:
    """About so many characters of the texts, each different one once, drawn by their hashes."""
    documents = [Document(text, text_id(text)) for text in texts if text.strip()]
    found, size = [], 0
    for document in sorted(exact.stage(documents), key=lambda each: each.lot()):
        if size + len(document.text) <= characters or not found:
            found.append(document.text)
            size += len(document.text)
    return found
