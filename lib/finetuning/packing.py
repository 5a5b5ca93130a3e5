"""Several conversations in a row, none of which sees another: fewer, fuller rows for the same losses.

Rows of unequal lengths are padded to the longest beside them, which is wasted time. Here conversations that fit
together share a row, the longest first, each in the fullest row that has room for it (best-fit decreasing, as TRL's
"bfd"; Ding et al., arXiv 2404.10830). Positions begin anew with each, from which transformers makes block-diagonal
attention, and its first token is no target. What is left of a row is filled with tokens of their own positions and
without targets: with an attention mask transformers would let packed texts see each other without a word.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lib.trainers import sequence_packing
from lib.trainers.answer_rows import AnswerRows
from lib.trainers.minibatch import IGNORED


@dataclass(frozen=True)
class PackedAnswers(Sequence):
    """Rows {"input_ids", "labels", "position_ids"} of one length; `where` names the conversations of each.

    filler: tokens that fill rows up.
    """

    rows: tuple[dict, ...]
    where: tuple[tuple[str, ...], ...]
    filler: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place]


def packed(given: AnswerRows, model: nn.Module, *, length: int) -> PackedAnswers:
    """The rows of `answer_rows.rows` side by side in rows of `length` tokens, for `model`; says how full they are.

    Raises ValueError for a row longer than that, and for a model that would let them see each other (tried).
    """
    sequence_packing.check(model)
    longest = max(len(row["input_ids"]) for row in given)
    if longest > length:
        raise ValueError(
            f"length={length} and a conversation of {longest} tokens; {longest} or more are allowed; cut rows with "
            f"answer_rows.rows(length={length}), or pack longer ones."
        )
    groups = fitted([len(row["input_ids"]) for row in given], length)
    rows = tuple(_row([given[place] for place in group], length) for group in groups)
    filler = len(rows) * length - given.tokens[0]
    share = filler / (len(rows) * length)
    print(f"{len(given)} conversations in {len(rows)} rows of {length} tokens, {share:.1%} filler")
    return PackedAnswers(rows, tuple(tuple(given.where[place] for place in group) for group in groups), filler)


def windows(given: Sequence[dict], count: int, length: int) -> torch.Tensor:
    """Token ids [count, length], or fewer rows, of conversations one behind the other: calibration like the training.

    Raises ValueError for fewer than `length` tokens in all.
    """
    whole = torch.cat([row["input_ids"] for row in given])[: count * length]
    if len(whole) < length:
        raise ValueError(
            f"{len(whole)} tokens for windows of {length}; as many are needed; give more, or shorter ones."
        )
    return whole[: len(whole) // length * length].view(-1, length)


def fitted(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Places of `sizes` in groups of at most `room` in all: the largest first, each where the least room is left.

    Groups are in the order of their first members, members in the order of `sizes`.
    """
    groups: list[list[int]] = []
    left: dict[int, list[int]] = {}  # room -> groups that have as much
    for place in sorted(range(len(sizes)), key=lambda each: -sizes[each]):
        fitting = next((free for free in sorted(left) if free >= sizes[place]), None)
        if fitting is None:
            groups.append([])
            group, fitting = len(groups) - 1, room
        else:
            group = left[fitting].pop()
            if not left[fitting]:
                del left[fitting]
        groups[group].append(place)
        left.setdefault(fitting - sizes[place], []).append(group)
    return sorted(map(sorted, groups))


def _row(members: list[dict], length: int) -> dict:
    ids, labels, positions = [], [], []
    for row in members:
        ids.append(row["input_ids"])
        labels.append(row["labels"].clone().index_fill_(0, torch.tensor([0]), IGNORED))
        positions.append(torch.arange(len(row["input_ids"])))
    rest = length - sum(map(len, ids))
    return {
        "input_ids": torch.cat([*ids, ids[0].new_zeros(rest)]),
        "labels": torch.cat([*labels, labels[0].new_full((rest,), IGNORED)]),
        "position_ids": torch.cat([*positions, torch.arange(rest)]),
    }
