"""Documents side by side in rows of one length, without a token that sees another document.

Rows of a stream of documents (each followed by the end token) hold the end of one text and the beginning of the next.
Left alone, attention crosses the border, and the first token of a text is predicted from the end of another. Here
position ids begin anew with each document, from which transformers makes block-diagonal attention, and the first token
of a document is no target.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lib import files
from lib.models import blocks
from lib.models.logits import evaluating
from lib.trainers.minibatch import IGNORED


class PackedSequences(Sequence):
    """Rows of packed documents, for `loop.train_`: {"input_ids", "labels", "position_ids"}, each [length].

    ids and positions: [rows, length]. dropped: tokens behind the last whole row.
    """

    def __init__(self, ids: Tensor, positions: Tensor, dropped: int = 0):
        self.ids, self.positions, self.dropped = ids, positions, dropped

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        if not -len(self) <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        ids, positions = self.ids[place], self.positions[place]
        return {"input_ids": ids, "labels": ids.masked_fill(positions == 0, IGNORED), "position_ids": positions}

    @property
    def identity(self) -> str:
        """Fingerprint of these rows."""
        return files.data_hash(torch.stack([self.ids, self.positions]))


def pack(
    documents: Iterable[Sequence[int]], length: int, *, end: int, block_diagonal: bool = True
) -> PackedSequences | Tensor:
    """Rows of `length` tokens of `documents` (token ids each), one behind the other, each followed by `end`.

    block_diagonal: whether tokens attend only to their own document; else the rows are windows of one stream [rows,
    length]. A document that does not fit the rest of a row continues in the next one, as a new document. Empty
    documents are left out. Raises ValueError for rows shorter than two tokens, and documents that fill no row.
    """
    if length < 2:
        raise ValueError(f"length={length}; rows of 2 tokens or more are allowed; give a longer one.")
    whole = [torch.as_tensor([*document, end]) for document in documents if len(document)]
    total = sum(map(len, whole))
    rows = total // length
    if not rows:
        raise ValueError(
            f"the documents have {total} tokens, end tokens included, and a row takes {length}; at least one row is "
            "needed; give more text or shorter rows."
        )
    ids = torch.cat(whole)[: rows * length].view(rows, length)
    if not block_diagonal:
        return ids
    starts = torch.tensor([0, *map(len, whole)]).cumsum(0)[:-1]
    first = torch.zeros(total, dtype=torch.bool).index_fill_(0, starts, True)[: rows * length].view(rows, length)
    first[:, 0] = True
    places = torch.arange(length).expand(rows, length)
    return PackedSequences(ids, places - places.where(first, 0).cummax(1).values, total - rows * length)


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
