"""Distillation across two vocabularies: a trimmed model learns from the one that has all entries.

Both read the same text, split differently. Where a token of each ends at the same character, both predict what comes
next from the same words, and the teacher's distribution p can be told in the student's entries: the probability of an
entry that is gone goes to the first piece that now writes it,

    p'(v) = Σ_u p(u) [first piece of u = v],    loss KL(p' || q)

In the middle of such an entry the teacher predicts nothing of the kind, and the next piece itself is the target. Other
ways across vocabularies compare sorted probabilities (arXiv 2402.12030); here one vocabulary is a part of the other.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lib import checkpoints, tokenization
from lib.models import logits, structure
from lib.trainers import adapters, chunked, loop, minibatch
from lib.trainers.divergences import FORWARD_KL

IMPOSSIBLE = -1e4  # a logit whose probability is 0
NOWHERE = -1  # the place of a token that ends where no token of the teacher ends


def heal_(model: nn.Module, teacher: nn.Module, documents: Iterable[str], *, length: int = 256, **options):
    """Train all weights of the trimmed `model` towards `teacher`, in place; returns the loop's history.

    documents: texts, cut into rows of at most `length` tokens of the model. options: `loop.train_`'s (tokens or steps,
    learning_rate, batch, seed, folder ...).
    """
    data = rows(documents, teacher.tokenizer, model.tokenizer, length)
    options = {"learning_rate": 1e-5, "batch": 4} | options
    if (tokens := options.pop("tokens", None)) is not None:
        options["steps"] = max(1, int(tokens // (options["batch"] * length)))
    with adapters.full_(model, embeddings=True):
        return loop.train_(model, data, Across(teacher), collate=collate, **options)


def rows(documents: Iterable[str], before, after, length: int) -> "Rows":
    """Rows {"input_ids", "teacher_ids", "places"} of texts, by the tokenizers `before` and `after` trimming.

    Text is cut at spaces, into pieces that fill `length` tokens nearly. places: for each of the row's tokens the index
    of the teacher's token that ends at the same character, `NOWHERE` where there is none.
    """
    if length < 2:
        raise ValueError(f"length={length}; 2 tokens or more are needed to predict one; 256 is usual.")
    found = []
    for document in documents:
        for piece in _pieces(tokenization.check(document), 4 * length):
            old, new = (_encode(tokenizer, piece) for tokenizer in (before, after))
            new = tuple(each[:length] for each in new)
            if len(new[0]) > 1:
                ends = {end: place for place, end in enumerate(_ends(old[1])) if end is not None}
                places = [NOWHERE if end is None else ends.get(end, NOWHERE) for end in _ends(new[1])]
                row = {"input_ids": new[0], "teacher_ids": old[0][: max(places) + 1 or 1], "places": places}
                found.append(minibatch.complete({name: torch.tensor(values) for name, values in row.items()}))
    if not found:
        raise ValueError("no text has two tokens; give a longer text.")
    return Rows(tuple(found))


@dataclass(frozen=True)
class Rows(Sequence):
    """Rows as `rows` makes them."""

    rows: tuple[dict, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place]

    @property
    def identity(self) -> str:
        """SHA-256 of all that the rows hold."""
        columns = ("input_ids", "teacher_ids", "places")
        content = [[row[name].tolist() for name in columns] for row in self.rows]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def collate(some: list[dict]) -> dict[str, Tensor]:
    """A batch of rows, and of what the teacher reads, each padded at the right."""
    other = ("teacher_ids", "places")
    batch = minibatch.collate([{name: value for name, value in row.items() if name not in other} for row in some])
    read = minibatch.collate([{"input_ids": row["teacher_ids"]} for row in some])
    longest = batch["input_ids"].shape[1]
    places = [torch.nn.functional.pad(row["places"], (0, longest - len(row["places"])), value=NOWHERE) for row in some]
    return batch | {
        "teacher_ids": read["input_ids"],
        "teacher_mask": read["attention_mask"],
        "places": torch.stack(places),
    }


@dataclass(frozen=True, eq=False)
class Across:
    """The loss from `teacher` to a model with a part of its vocabulary, on batches of `collate`."""

    teacher: nn.Module
    _first: dict = field(default_factory=dict, repr=False)

    @property
    def identity(self) -> dict:
        """Settings that determine the result of a training with this loss."""
        made = {"teacher": checkpoints.fingerprint(self.teacher), "teacher_layers": structure.fingerprint(self.teacher)}
        return {"loss": "across vocabularies", **made}

    def check(self, model: nn.Module) -> None:
        """Find the first piece of each of the teacher's entries; ValueError where the model has others than it."""
        count = logits.split(self.teacher)[1].vocabulary
        self._first["pieces"] = first_pieces(self.teacher.tokenizer, model.tokenizer, count)

    def __call__(self, model: nn.Module, batch: dict) -> Tensor:
        """The mean over all targets, in nats."""
        given = {"input_ids": batch["teacher_ids"], "attention_mask": batch["teacher_mask"]}
        places = minibatch.select(batch["places"][:, :-1], batch)
        row = minibatch.select(torch.arange(len(batch["places"]))[:, None].expand_as(batch["places"])[:, :-1], batch)
        targets, pieces = minibatch.targets(batch), self._first["pieces"].to(places.device)
        with logits.evaluating(self.teacher), torch.no_grad():
            run, projection = logits.split(self.teacher)
            states = run(**minibatch.inputs(given))[row.to(places.device), places.clamp(min=0)]

        def of_logits(found: Tensor, some: slice) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                p = projection(states[some]).float().softmax(-1)
                told = p.new_zeros(len(p), found.shape[1] + 1).index_add_(1, pieces, p)[:, :-1]
                z_p = told.log().clamp_(min=IMPOSSIBLE)
                alone = (places[some] == NOWHERE).nonzero()[:, 0]
                z_p[alone] = IMPOSSIBLE
                z_p[alone, targets[some][alone]] = 0.0
            return FORWARD_KL(z_p, found)

        return chunked.mean(model, batch, of_logits)


def first_pieces(before, after, count: int) -> Tensor:
    """For each of `count` ids of `before` the id of `after` that begins what it writes; [count].

    Rows that no entry has get the number after the last id. Raises ValueError where `after` has an entry that `before`
    lacks.
    """
    old, new = before.get_vocab(), after.get_vocab()
    if others := new.keys() - old.keys():
        raise ValueError(
            f"the model has the entry {sorted(others)[0]!r} and its teacher has not; a part of the teacher's "
            "vocabulary is allowed; take the model that this one was trimmed from."
        )
    found = torch.full((count,), len(new))
    for entry, id in old.items():
        if id < count:
            core = after.backend_tokenizer.model
            pieces = [] if entry in new else core.tokenize(entry)
            found[id] = new[entry] if entry in new else (pieces[0].id if pieces else len(new))
    return found


def _pieces(document: str, characters: int) -> Iterable[str]:
    """The document in pieces of about so many characters, cut before a space."""
    start = 0
    while start < len(document):
        end = document.find(" ", start + characters)
        end = len(document) if end < 0 else end
        yield document[start:end]
        start = end


def _encode(tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and places in the text of each token, after what the tokenizer puts before a text."""
    found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    first = tokenization.first_ids(tokenizer)
    return first + found["input_ids"], [(0, 0)] * len(first) + found["offset_mapping"]


def _ends(offsets: list[tuple[int, int]]) -> list[int | None]:
    """The character at which each token ends; None inside of a character that several tokens write."""
    starts = [start for start, _ in offsets[1:]] + [None]
    return [None if start is not None and start < end else end for (_, end), start in zip(offsets, starts)]
