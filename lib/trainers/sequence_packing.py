"""Documents side by side in rows of one length, without a token that sees another document.

Rows of a stream of documents (each followed by the end token) hold the end of one text and the beginning of the next.
Left alone, attention crosses the border, and the first token of a text is predicted from the end of another. Here
position ids begin anew with each document, from which transformers makes block-diagonal attention, and the first token
of a document is no target.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lib.models import blocks
from lib.models.logits import evaluating
from lib.trainers.minibatch import IGNORED

_AT_ONCE = 1 << 22  # tokens looked at together


class PackedSequences(Sequence):
    """Rows of packed documents, for `loop.train_`: {"input_ids", "labels", "position_ids"}, each [length].

    stream: token ids [tokens] of documents one behind the other, `end` behind each; a file that is mapped into memory
    stays there (`sources.token_file`), and a row is read when it is asked for. A document that does not fit the rest of
    a row continues in the next one, as a new document. Slices of rows are `PackedSequences`. Raises ValueError for rows
    shorter than two tokens, and for documents that fill none.
    """

    def __init__(self, stream: np.ndarray, length: int, *, end: int):
        if length < 2:
            raise ValueError(f"length={length}; rows of 2 tokens or more are allowed; give a longer one.")
        if len(stream) < length:
            raise ValueError(
                f"the documents have {len(stream)} tokens, end tokens included, and a row takes {length}; at least one "
                "row is needed; give more text or shorter rows."
            )
        self.stream, self.length, self.end = stream, length, end

    def __len__(self) -> int:
        return len(self.stream) // self.length

    def __getitem__(self, place):
        if isinstance(place, slice):
            first, last, step = place.indices(len(self))
            if step != 1:
                raise ValueError(f"every {step}th row was asked; rows one after another are allowed; leave out {step}.")
            return PackedSequences(self.stream[first * self.length : last * self.length], self.length, end=self.end)
        if not -len(self) <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        begin = place % len(self) * self.length
        ids = torch.from_numpy(self.stream[begin : begin + self.length].astype(np.int64))
        positions = self._positions(ids[None])[0]
        return {"input_ids": ids, "labels": ids.masked_fill(positions == 0, IGNORED), "position_ids": positions}

    @property
    def ids(self) -> Tensor:
        """The tokens of all rows at once [rows, length]."""
        whole = self.stream[: len(self) * self.length].astype(np.int64)
        return torch.from_numpy(whole).view(-1, self.length)

    @property
    def positions(self) -> Tensor:
        """The positions of all rows at once [rows, length], each counted from the first token of its document."""
        return self._positions(self.ids)

    @property
    def dropped(self) -> int:
        """Tokens behind the last whole row."""
        return len(self.stream) % self.length

    @property
    def identity(self) -> str:
        """Fingerprint of these rows."""
        return self._scan[0]

    @property
    def largest(self) -> int:
        """The largest token id of these rows."""
        return self._scan[1]

    @functools.cached_property
    def _scan(self) -> tuple[str, int]:
        """(Hash of ids and positions as `files.data_hash` has it of both stacked, largest id); all is read twice."""
        digest, largest = hashlib.sha256(f"{[2, len(self), self.length]}".encode()), 0
        some = max(1, _AT_ONCE // self.length)
        blocks = [self[start : start + some] for start in range(0, len(self), some)]
        for block in blocks:
            digest.update(block.ids.numpy().astype("<i8").tobytes())
            largest = max(largest, int(block.ids.max()))
        for block in blocks:
            digest.update(block.positions.numpy().astype("<i8").tobytes())
        return digest.hexdigest(), largest

    def _positions(self, ids: Tensor) -> Tensor:
        first = torch.ones_like(ids, dtype=torch.bool)  # a row begins anew, as does what follows an end
        first[:, 1:] = ids[:, :-1] == self.end
        places = torch.arange(self.length).expand_as(ids)
        return places - places.where(first, 0).cummax(1).values


def pack(
    documents: Iterable[Sequence[int]], length: int, *, end: int, block_diagonal: bool = True
) -> PackedSequences | Tensor:
    """Rows of `length` tokens of `documents` (token ids each), one behind the other, each followed by `end`.

    block_diagonal: whether tokens attend only to their own document; else the rows are windows of one stream [rows,
    length]. Empty documents are left out. Errors are those of `PackedSequences`.
    """
    whole = [np.array([*document, end], np.int64) for document in documents if len(document)]
    rows = PackedSequences(np.concatenate([np.empty(0, np.int64), *whole]), length, end=end)
    return rows if block_diagonal else rows.ids


@torch.no_grad()
def check(model: nn.Module) -> None:
    """Raise ValueError where `model` lets packed documents see each other, tried on two of three tokens."""
    config, device = blocks.config(model), blocks.device(model)
    ids = torch.arange(6, device=device)[None] % config.vocab_size
    other, positions = ids.clone(), torch.arange(3, device=device).repeat(2)[None]
    other[0, :3] = other[0, :3].flip(0)
    try:
        with evaluating(model):
            given = {"position_ids": positions, "use_cache": False}
            first, second = (model(input_ids=each, **given).logits for each in (ids, other))
            alone = model(input_ids=ids[:, 3:], use_cache=False).logits
        found = max((first - second)[0, 3:].abs().max().item(), (first[:, 3:] - alone).abs().max().item())
    except (TypeError, ValueError):  # the model takes no positions
        first, found = torch.zeros(1), torch.inf
    if not found <= 64 * torch.finfo(first.dtype).eps * max(first.abs().max().item(), 1):
        raise ValueError(
            f"{type(model).__name__} does not keep packed documents apart (logits differ by {found:.2g}); Llama and "
            "models built like it do; pack with block_diagonal=False, or train on one document a row."
        )
