"""How often a text uses each entry of a vocabulary, and how many tokens a tokenizer needs for a text."""

from collections.abc import Iterable

import numpy as np

from lib import tokenization
from lib.sources import streams

# a sentence or two of what a corpus may have left out: written for this file
SAMPLES = {
    "German": "Die Bäuerin fuhr gestern mit dem frühen Zug in die Stadt, um dort Äpfel, Käse und Eier zu verkaufen.",
    "French": "Hier soir, nous avons dîné près du vieux pont, où l'eau coulait si doucement qu'on l'entendait à peine.",
    "Chinese": "昨天下午,我和朋友一起去图书馆借了几本关于海洋和气候的书。",
    "Russian": "Вчера вечером соседи долго спорили о том, кто оставил открытым окно на лестнице.",
    "code": "def total(rows):\n    return sum(row['price'] * row['count'] for row in rows if row.get('count'))\n",
    "numbers": "1,204.50 + 88.75 = 1,293.25; 2026-03-14T09:26:53Z; 3.1416; 0x7ffe; 10.0.0.1; 45 %",
}


def count(tokenizer, texts: Iterable[str]) -> np.ndarray:
    """Occurrences of each id in documents (strings, or streamed ones), [len(tokenizer)]; nothing is put before them."""
    found = np.zeros(len(tokenizer), np.int64)
    for document in streams.in_pieces(texts):
        for piece in document:
            ids = tokenizer(tokenization.check(piece), add_special_tokens=False, verbose=False)["input_ids"]
            found += np.bincount(ids, minlength=len(found))
    return found


def bytes_per_token(tokenizer, text: str) -> float:
    """UTF-8 bytes of `text` for each of its tokens."""
    return len(text.encode()) / max(len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]), 1)


def lengthening(before, after, samples: dict[str, str] | None = None) -> dict[str, float]:
    """By name of the sample, how many times the tokens `after` needs for it that `before` needs (1: as many)."""
    samples = SAMPLES if samples is None else samples
    return {name: bytes_per_token(before, text) / bytes_per_token(after, text) for name, text in samples.items()}
