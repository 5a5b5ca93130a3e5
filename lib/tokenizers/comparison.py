"""What tells one tokenizer from another before a model is trained with it.

    table = comparison.table({"ours": ours, "SmolLM2": tokenizer}, {"English": texts, "code": programs}, width=576)

Fertility is tokens for each word between white space (1 is the least), which languages without spaces don't have. Rényi
efficiency (Zouhar et al., arXiv 2306.16842) is the entropy of order 2.5 of the tokens' frequencies over the logarithm
of the vocabulary: low where few tokens make most of a text. It was found to go with translation quality, and examples
were published where it doesn't (arXiv 2402.14614): so it is shown beside bytes a token, not in its place.
"""

from collections.abc import Iterable

import numpy as np

from lib import tokenization
from lib.tokenizers import usage
from lib.tokenizers.entries import BYTES

ORDER = 2.5


def table(tokenizers: dict, texts: dict[str, Iterable[str]], *, width: int | None = None) -> list[dict]:
    """A row for each tokenizer and kind of text; `width` of a model's embedding adds how many weights it takes.

    Row: tokenizer, text, tokens, bytes_per_token, fertility (None without white space), renyi, unused (entries that the
    text never uses), vocabulary, and embedding (weights).
    """
    held = {name: list(documents) for name, documents in texts.items()}
    rows = []
    for label, tokenizer in tokenizers.items():
        for name, documents in held.items():
            counts = usage.count(tokenizer, documents)
            row = {"tokenizer": label, "text": name, "vocabulary": len(tokenizer)} | measures(counts, documents)
            rows.append(row | ({"embedding": len(tokenizer) * width} if width else {}))
    return rows


def measures(counts: np.ndarray, documents: list[str]) -> dict:
    """What `table` says of one text; counts: how often each entry occurs in `documents`."""
    tokens, words = int(counts.sum()), sum(len(document.split()) for document in documents)
    size = sum(len(document.encode()) for document in documents)
    spaced = words > sum(map(len, documents)) / 50
    return {
        "tokens": tokens,
        "bytes_per_token": size / max(1, tokens),
        "fertility": tokens / words if spaced and words else None,
        "renyi": renyi_efficiency(counts),
        "unused": int((counts == 0).sum()),
    }


def renyi_efficiency(counts: np.ndarray, order: float = ORDER) -> float | None:
    """Rényi entropy of that order of the frequencies over the logarithm of the entries; None without tokens.

    H = ln(Σ pᵅ) / (1 - α), for α = 1 Shannon's; 1 where all entries are equally frequent.
    """
    if not counts.sum() or len(counts) < 2:
        return None
    p = counts[counts > 0] / counts.sum()
    entropy = -(p * np.log(p)).sum() if order == 1 else np.log((p**order).sum()) / (1 - order)
    return float(entropy / np.log(len(counts)))


def unreachable(tokenizer) -> list[int]:
    """Ids of entries that no text is split into: what they write is written by others. Special tokens aside.

    Each entry is decoded and encoded again, alone and behind a letter, since some stand only at a word's beginning or
    inside of one. Entries that write no whole character can't be asked for, and are left out.
    """
    found, special = [], set(tokenizer.all_special_ids)
    for id in range(len(tokenizer)):
        text = tokenizer.decode([id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if id in special or not text or "\ufffd" in text:
            continue
        if not any(id in tokenizer(before + text, add_special_tokens=False)["input_ids"] for before in ("", "a", "a ")):
            found.append(id)
    return found


def undertrained(model, count: int = 50, *, unused: Iterable[int] | None = None) -> list[dict]:
    """The `count` entries whose embeddings lie nearest to those of entries that training never met, special ones aside.

    Rows that are never met only decay, all alike, and so lie together (Land and Bartolo, arXiv 2405.05417). unused: ids
    that are known to be so; None for special tokens and bytes that no UTF-8 has, of which the median stands for all,
    since some special tokens are met. Dicts of id, entry, norm and distance (1 - cosine, after the mean of all rows is
    taken out), the nearest first. Raises ValueError where nothing is known to be unused.
    """
    from lib.models import blocks  # torch, for this function alone

    tokenizer = model.tokenizer
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    known = sorted(special | _impossible(tokenizer) if unused is None else set(unused))
    if not known:
        raise ValueError("nothing is known to be unused; ids of entries that training never met are needed; give some.")
    rows = blocks.embeddings(model).weight.detach().float().cpu().numpy()[: len(tokenizer)]
    centred = rows - rows.mean(0)
    anchor = np.median(centred[known], axis=0)
    lengths = np.linalg.norm(centred, axis=1) * np.linalg.norm(anchor)
    distance = 1 - centred @ anchor / np.maximum(lengths, 1e-12)
    nearest = [int(id) for id in np.argsort(distance, kind="stable") if int(id) not in special][:count]
    norms = np.linalg.norm(rows, axis=1)
    return [
        {"id": id, "entry": entry, "norm": float(norms[id]), "distance": float(distance[id])}
        for id, entry in zip(nearest, tokenizer.convert_ids_to_tokens(nearest))
    ]


def _impossible(tokenizer) -> set[int]:
    """Ids of bytes that no UTF-8 has, as vocabularies on bytes and with fallback to bytes write them."""
    entries = tokenizer.get_vocab()
    never = (0xC0, 0xC1, *range(0xF5, 0x100))
    written = {f"<0x{byte:02X}>" for byte in never} if BYTES[0] in entries else {chr(byte) for byte in never}
    return {entries[each] for each in written if each in entries}


def round_trips(tokenizer, text: str) -> bool:
    """Whether a text comes back from its tokens as it was; ValueError for half a character, which has no bytes."""
    ids = tokenizer(tokenization.check(text), add_special_tokens=False, verbose=False)["input_ids"]
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == text
