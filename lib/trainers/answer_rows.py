"""Conversations as rows to train on: the model's own chat template, and a loss on the assistant's tokens only.

A template is asked twice for each answer: for the text up to where the model would begin to write, and for the text
with the answer. What lies between is what it would have to write, its end token included; all else is prompt. So
templates need no marks of their own (`{% generation %}`), and those that have some get the same mask.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lib import tokenization
from lib.sources.conversations import Conversation, Turn
from lib.trainers.minibatch import IGNORED

ANSWERS = ("all", "last")


@dataclass(frozen=True)
class AnswerRows(Sequence):
    """Rows with `input_ids` and `labels` [length]; `where` names the data set's row of each.

    counts: of the conversations, how many were "cut" at the longest length, "dropped" because no token of an answer was
    left, and "ended" by an end token that the template does not write.
    """

    rows: tuple[dict, ...]
    where: tuple[str, ...]
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place]

    @property
    def tokens(self) -> tuple[int, int]:
        """(tokens in all rows, tokens with a loss)."""
        return sum(len(row["input_ids"]) for row in self.rows), sum(_learned(row["labels"]) for row in self.rows)


def rows(conversations: Sequence[Conversation], tokenizer, *, length: int, answers: str = "all") -> AnswerRows:
    """A row per conversation of at most `length` tokens, cut at its right end; says what was cut and dropped.

    tokenizer: one with a chat template. answers: "all" of a conversation, or the "last" alone, which is needed where a
    template writes an answer otherwise once others follow. Raises ValueError for a missing template, for one that does
    not accept the turns (a system turn, say) and for conversations without an answer, naming the row.
    """
    check(tokenizer, length, answers)
    found, counts = [], Counter()
    for each in conversations:
        ids, labels, ended = encode(each.turns, tokenizer, answers=answers, where=each.where)
        counts["ended"] += ended
        counts["cut"] += len(ids) > length
        ids, labels = ids[:length], labels[:length]
        if not _learned(labels):
            counts["dropped"] += 1
            continue
        found.append(({"input_ids": ids, "labels": labels}, each.where))
    made = AnswerRows(tuple(row for row, _ in found), tuple(where for _, where in found), dict(counts))
    if not made:
        raise ValueError(
            f"none of {len(conversations)} conversations has an answer within {length} tokens; allow more."
        )
    whole, learned = made.tokens
    said = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
    print(f"{len(made)} conversations, {whole:,} tokens, {learned:,} of them answers" + (f"; {said}" if said else ""))
    return made


def encode(turns: Sequence[Turn], tokenizer, *, answers: str = "all", where: str = "a row"):
    """(token ids [length], labels [length], whether an end token was added) of one conversation."""
    text, spans = spans_of(turns, tokenizer, answers, where)
    found = tokenizer(
        text, add_special_tokens=not tokenization.begin(tokenizer, [text])[0], return_offsets_mapping=True
    )
    ids, special = list(found["input_ids"]), set(tokenizer.all_special_ids)
    labels = [IGNORED] * len(ids)
    inside = []
    for start, end in spans:
        inside = [place for place, (a, b) in enumerate(found["offset_mapping"]) if start <= a < b <= end]
        last = max((place for place in inside if ids[place] in special), default=None)
        for place in inside if last is None else inside[: inside.index(last) + 1]:
            labels[place] = ids[place]
    ended = bool(inside) and labels[inside[-1]] != IGNORED and not any(ids[place] in special for place in inside)
    if ended and tokenizer.eos_token_id is not None:  # a model that never sees an end would never stop
        ids, labels = ([*each[: inside[-1] + 1], tokenizer.eos_token_id] for each in (ids, labels))
    return torch.tensor(ids), torch.tensor(labels), ended


def asked(turns: Sequence[Turn], tokenizer, where: str = "a row") -> torch.Tensor:
    """Token ids [length] of turns that end with a question, up to where the model begins to answer."""
    text = _written(tokenizer, turns, where, asked=True)
    return torch.tensor(tokenization.ids(tokenizer, [text])[0])


def spans_of(turns: Sequence[Turn], tokenizer, answers: str, where: str) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and where its answers stand in it."""
    places = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if not places:
        raise ValueError(f"{where} has no answer of the assistant; one is needed; leave it out.")
    whole, spans = _written(tokenizer, turns, where), []
    for place in places if answers == "all" else places[-1:]:
        before = _written(tokenizer, turns[:place], where, asked=True)
        after = _written(tokenizer, turns[: place + 1], where)
        same = after if whole.startswith(after) else after.rstrip()
        if not (whole.startswith(same) and same.startswith(before)):
            raise ValueError(
                f"{where}: the chat template writes answer {place} otherwise behind its question than in the whole "
                "conversation, so the loss on it would be on another text; only last answers can be learned with this "
                'template; give answers="last".'
            )
        spans.append((len(before), len(same)))
    return whole, spans


def _written(tokenizer, turns: Sequence[Turn], where: str, asked: bool = False) -> str:
    """The text that the template makes; asked: up to where the model begins to write."""
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked)
    except Exception as error:  # a template raises what it likes: jinja2's errors, its own `raise_exception`
        roles = ", ".join(turn.role for turn in turns)
        raise ValueError(
            f"{where}: the chat template does not take turns of {roles} ({error}); leave out what it refuses."
        ) from error


def check(tokenizer, length: int, answers: str) -> None:
    """Raise ValueError for a tokenizer without template or offsets, and for arguments out of range."""
    if answers not in ANSWERS or length < 2:
        raise ValueError(f"answers={answers!r} and length={length}; {' or '.join(ANSWERS)} and 2 or more are allowed.")
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template, so nobody knows how the model's conversations are written; give the "
            "tokenizer of an instruct model, or set tokenizer.chat_template."
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{type(tokenizer).__name__} says not where tokens stand in a text; take its fast form.")


def _learned(labels: torch.Tensor) -> int:
    """How many tokens have a loss: the first of a row is predicted by nothing."""
    return int((labels[1:] != IGNORED).sum())
