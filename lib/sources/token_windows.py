"""Windows cut from the token ids of a text: where they begin, which are drawn, and what each begins with.

Ids are a tensor, or are mapped from a file: then the windows stay there, as `Rows`, until somebody reads them.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import AutoTokenizer

from lib import tokenization
from lib.sources import note, pieces, token_file

_AT_ONCE = 1 << 20  # tokens of a block of windows
_cache: dict[tuple[str, str], Tensor] = {}  # (hash of a text, rules of a tokenizer) -> ids


class Rows(Sequence):
    """Windows [count, length] whose tokens stay in a file; one is a LongTensor [length], a slice of them is `Rows`.

    ids: token ids [tokens]. first: token ids that each window begins with. places: where in `ids` the text of each
    window begins, in their order. vocabulary: how many tokens the model knows; a window with others raises ValueError
    when it is read.
    """

    def __init__(self, ids: np.memmap, first: list[int], length: int, places: Sequence[int], vocabulary: int):
        self.ids, self.first, self.length, self.places, self.vocabulary = ids, first, length, places, vocabulary
        self._room = length - len(first)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return Rows(self.ids, self.first, self.length, self.places[place], self.vocabulary)
        return self._read([self.places[place]])[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Windows and the tokens of each."""
        return len(self), self.length

    def blocks(self) -> Iterator[Tensor]:
        """The windows in order, as LongTensors [some, length] of about a million tokens."""
        some = max(1, _AT_ONCE // self.length)
        for start in range(0, len(self), some):
            yield self._read(self.places[start : start + some])

    def tensor(self) -> Tensor:
        """All windows at once, LongTensor [count, length]; ValueError where the memory has no room for them."""
        size, free = 8 * len(self) * self.length, psutil.virtual_memory().available
        if size > free:
            raise ValueError(
                f"{len(self):,} windows of {self.length} tokens take {size / 1e9:.1f} GB of memory and "
                f"{free / 1e9:.1f} GB are free; as many as fit can be read at once; ask fewer, by "
                "text.windows(count, length)."
            )
        found = torch.empty(self.shape, dtype=torch.long)
        for start, block in zip(range(0, len(self), max(1, _AT_ONCE // self.length)), self.blocks()):
            found[start : start + len(block)] = block
        return found

    def _read(self, places: Sequence[int]) -> Tensor:
        some = np.stack([self.ids[place : place + self._room] for place in places])
        return known(_begun(self.first, torch.from_numpy(some.astype(np.int64))), self.vocabulary)


def known(ids: Tensor, vocabulary: int) -> Tensor:
    """The ids themselves; ValueError where some are none of the `vocabulary` that a model knows."""
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f"token ids from {int(ids.min())} to {int(ids.max())} were given; the model knows 0 to "
            f"{vocabulary - 1}; use the tokenizer that belongs to it."
        )
    return ids


def cut(text, model, count: int | None, length: int, seed: int | None, bos: bool | None, *, most=None):
    """`count` windows of `length` tokens of a `texts.Text`, as `texts.Windows` has them: a tensor, or `Rows`.

    count: None for all that there are, `most` of them at most.
    """
    tokenizer = tokenizer_of(model)
    first = tokenization.before_windows(tokenizer, bos)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and length > positions:
        raise ValueError(f"length={length} is more than the model's {positions} positions; ask shorter windows.")
    ids, vocabulary = _ids(text, tokenizer), model.get_input_embeddings().num_embeddings
    starts = pieces.starts(ids.numpy() if isinstance(ids, Tensor) else ids, first, length)
    available = len(starts)
    count = count or min(most or available, available) or 1
    if available < count:
        raise ValueError(
            f"{text.name}/{text.split} has {len(ids)} tokens, enough for {available} windows of "
            f"{length}; {count} were asked; ask fewer or shorter ones, or take a longer text."
        )
    chosen = None if seed is None else random.Random(seed).sample(range(available), count)
    starts = starts[:count] if chosen is None else [starts[place] for place in chosen]
    _say(first, tokenizer)
    if not isinstance(ids, Tensor):
        return Rows(ids, first, length, starts, vocabulary)
    return known(_begun(first, ids.unfold(0, length - len(first), 1)[torch.tensor(list(starts))]), vocabulary)


def _begun(first: list[int], found: Tensor) -> Tensor:
    """Pieces of text [count, length] behind the tokens that each window begins with."""
    return torch.cat([torch.tensor(first, dtype=torch.long).expand(len(found), -1), found], 1)


def tokenizer_of(model):
    """The tokenizer that `sources.models.load` attached, else that of the folder or id the model was loaded from."""
    if getattr(model, "tokenizer", None) is None:
        origin = getattr(model, "name_or_path", "")
        if not origin:
            raise ValueError(
                "the model has no tokenizer and names no folder; text needs one; "
                "set model.tokenizer, or give token ids."
            )
        model.tokenizer = AutoTokenizer.from_pretrained(origin, trust_remote_code=False)
    return model.tokenizer


def _say(first, tokenizer):
    """Print and note what windows begin with, once, wherever the tokenizer or the caller has them begin so."""
    own = tokenization.first_ids(tokenizer)
    if not first and not own:
        return
    shown = f"{tokenizer.decode(first)!r} {first}" if first else "nothing"
    why = "which the tokenizer puts before a text" if first == own else "as asked; the tokenizer puts "
    why += "" if first == own else f"{tokenizer.decode(own)!r} {own}" if own else "nothing"
    sha256 = hashlib.sha256(str(first).encode()).hexdigest()
    if note(kind="windows", name="beginning", origin=f"{shown}, {why}", sha256=sha256):
        print(f"windows begin with {shown}, {why}")


def _check_memory(text, tokenizer) -> None:
    """Raise ValueError where a streamed text, its tokens in a list and in a tensor do not fit into memory."""
    size, free = 24 * text.characters, psutil.virtual_memory().available
    if size > free:
        raise ValueError(
            f"{text.name}/{text.split} takes up to {size / 1e9:.1f} GB as the {type(tokenizer).__name__} reads it, and "
            f"{free / 1e9:.1f} GB are free; a tokenizer with code of its own reads a text as one; take one of "
            "transformers over tokenizers, or a shorter text."
        )


def _ids(text, tokenizer) -> Tensor | np.memmap:
    """All token ids of a text [tokens], kept for the next model whose tokenizer has the same rules.

    Those of a streamed text stay in a file. A tokenizer with code of its own is asked each time, for the whole text:
    nothing tells what it makes of a part of it. Raises ValueError where the memory has no room for that.
    """
    known = tokenization.is_written_down(tokenizer)
    if known and text.streamed:
        return token_file.mapped(text, tokenizer)
    if text.streamed:
        _check_memory(text, tokenizer)
    words = text.text
    key = known and (hashlib.sha256(words.encode()).hexdigest(), tokenization.identity(tokenizer))
    if known and key in _cache:
        return _cache[key]
    found = torch.tensor(tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)
    if known:
        _cache[key] = found
    return found
