"""A text's tokens cut into the pieces that windows hold, behind what each window begins with."""

import torch
from torch import Tensor


def cut(ids: Tensor, first: list[int], length: int) -> Tensor:
    """Pieces [count, length - len(first)] of `ids` [tokens], from the start and without overlap.

    Each will stand behind `first`. Where the text itself has `first` written at a piece's beginning (a chat template
    writes "<bos>"), it is left out there, so that no window begins with it twice. Raises ValueError for a `length` that
    leaves no room for text.
    """
    room, size = length - len(first), len(first)
    if room < 1:
        raise ValueError(
            f"length={length} of windows that begin with {size} tokens of the tokenizer's own; more are needed, "
            "so that text follows; ask longer windows."
        )
    written = set()
    if first and len(ids) >= size:
        written = set((ids.unfold(0, size, 1) == torch.tensor(first)).all(1).nonzero().flatten().tolist())
    if not written:
        return ids[: len(ids) // room * room].view(-1, room)
    found, place = [], 0
    while True:
        place += size if place in written else 0
        if place + room > len(ids):
            return torch.stack(found) if found else ids.new_empty(0, room)
        found.append(ids[place : place + room])
        place += room
