"""Which entries of a vocabulary stay: those that a corpus uses most, and all that they are made of.

Byte-pair encoding (Sennrich et al., arXiv 1508.07909) builds an entry by merges, each of two entries that are there.
So an entry stays only together with those that lead to it. Then a text whose tokens all stay is split as before: the
merges that went were never the first in line for it. A text whose tokens went is split into shorter ones, down to
single bytes, which always stay; so every text can still be written. An entry of a unigram vocabulary is made of
nothing else.
"""

import itertools
import json
from collections.abc import Iterable

import numpy as np

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # as vocabularies with byte fallback write them


class Vocabulary:
    """The entries of a fast tokenizer of transformers, and what each is made of.

    Raises ValueError for a tokenizer whose entries can't be taken away: WordPiece, and one without a way to write
    every text (neither bytes as its alphabet, nor a fallback to them).
    """

    def __init__(self, tokenizer):
        core = getattr(tokenizer, "backend_tokenizer", None)
        if core is None:
            raise ValueError(
                f"{type(tokenizer).__name__} is not written down in a tokenizer.json; a fast tokenizer is needed; load "
                "it with AutoTokenizer."
            )
        self.rules = json.loads(core.to_str())
        model, kind = self.rules["model"], self.rules["model"].get("type")
        if kind not in ("BPE", "Unigram") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise ValueError(
                f"a vocabulary of {kind} with prefixes {model.get('continuing_subword_prefix')!r}; byte-pair encoding "
                "without prefixes, and unigram, are allowed; keep this one whole."
            )
        entries = model["vocab"] if kind == "BPE" else {entry: place for place, (entry, _) in enumerate(model["vocab"])}
        self.kind, self.ids = kind, dict(entries)
        self.merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model.get("merges", [])]
        self.ranks = {pair: rank for rank, pair in reversed(list(enumerate(self.merges)))}
        self.added = {token["content"]: token["id"] for token in self.rules["added_tokens"]}
        self.alphabet = self._alphabet()

    def _alphabet(self) -> set[int]:
        """Ids of what writes any text: the 256 bytes, in one of the two ways."""
        if "ByteLevel" in json.dumps([self.rules["pre_tokenizer"], self.rules["normalizer"]]):
            return {id for entry, id in self.ids.items() if len(entry) == 1}
        if self.rules["model"].get("byte_fallback") and all(byte in self.ids for byte in BYTES):
            return {self.ids[byte] for byte in BYTES}
        raise ValueError(
            "a vocabulary without all bytes, which can't write every text once entries are gone; one on bytes, or with "
            "a fallback to them, is allowed; keep this one whole."
        )

    def parts(self, entry: str) -> set[int]:
        """Ids of all that byte-pair encoding passes through on its way to `entry`, the entry included."""
        if self.kind != "BPE" or entry not in self.ids:
            return {self.ids[entry]} if entry in self.ids else set()
        pieces, found = list(entry), {self.ids[entry], *(self.ids[sign] for sign in entry if sign in self.ids)}
        while len(pieces) > 1:
            pairs = [(self.ranks.get(pair, len(self.ranks)), at) for at, pair in enumerate(itertools.pairwise(pieces))]
            rank, at = min(pairs)
            if rank == len(self.ranks):
                break  # not by merges alone: taken as a whole word, or an added token
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
            found.add(self.ids[pieces[at]])
        return found

    def kept(self, occurrences: np.ndarray, size: int, needed: Iterable[int] = ()) -> list[int]:
        """`size` ids in order: the alphabet, added tokens and `needed`, then the most frequent with what they need.

        occurrences: how often each id occurs. Of equally frequent ones the lower id goes first, which is the earlier
        merge. Raises ValueError for a size below what must stay, or not below what is there.
        """
        must = self.alphabet | set(self.added.values()) | set(needed)
        must |= {self.ids[name] for name in (self._unknown(),) if name in self.ids}
        total = len(set(self.ids.values()) | set(self.added.values()))
        if isinstance(size, bool) or not isinstance(size, int) or not len(must) <= size < total:
            raise ValueError(
                f"size={size!r} of a vocabulary of {total}; whole numbers from {len(must)} (bytes and special tokens) "
                f"to {total - 1} are allowed; two thirds of it are {2 * total // 3}."
            )
        entries = {id: entry for entry, id in self.ids.items()}
        for id in sorted(entries, key=lambda id: (-int(occurrences[id]), id)):
            if len(must) >= size:
                break
            found = must if id in must else must | self.parts(entries[id])
            must = found if len(found) <= size else must
        return sorted(must)

    def _unknown(self) -> str | None:
        model = self.rules["model"]
        if self.kind == "Unigram" and model.get("unk_id") is not None:
            return model["vocab"][model["unk_id"]][0]
        return model.get("unk_token")

    def without_others(self, kept: list[int]) -> dict:
        """The rules of the tokenizer that has only `kept` ids, renumbered 0, 1, ... in that order."""
        new, rules = {old: place for place, old in enumerate(kept)}, json.loads(json.dumps(self.rules))
        model = rules["model"]
        left = {entry: new[id] for entry, id in self.ids.items() if id in new}
        if self.kind == "BPE":
            model["vocab"] = left
            model["merges"] = [list(pair) for pair in self.merges if {*pair, "".join(pair)} <= left.keys()]
        else:
            unknown = self._unknown()
            model["vocab"] = [pair for place, pair in enumerate(model["vocab"]) if place in new]
            model["unk_id"] = None if unknown is None else left[unknown]
        for token in rules["added_tokens"]:
            token["id"] = new[token["id"]]
        _renumber(rules["post_processor"], new)
        return rules


def _renumber(part, new: dict[int, int]) -> None:
    """Put the new ids into a post-processor, in place: templates, RoBERTa's and BERT's pairs, sequences of these."""
    if isinstance(part, list):
        for each in part:
            _renumber(each, new)
    elif isinstance(part, dict):
        for token in (part.get("special_tokens") or {}).values():
            token["ids"] = [new[id] for id in token["ids"]]
        for name in ("sep", "cls"):
            if isinstance(part.get(name), list):
                part[name] = [part[name][0], new[part[name][1]]]
        _renumber(part.get("processors"), new)
