"""Preferences on the one training loop: rows of two sequences each, the reference computed once, and the loss.

    rows = preference_training.pairs(conversations, tokenizer, length=512).towards(reference)
    loss = preference_training.Loss("dpo", Options(beta=0.1))
    loop.train_(model, rows, loss, collate=preference_training.collate, batch=4, micro_batch=2, steps=100, ...)

The reference is a model in memory, never a path: of a model that was compressed, a file would be another one.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lib import checkpoints, progress
from lib.models import logits, structure
from lib.sources.conversations import Conversation, Turn
from lib.trainers import answer_rows, minibatch, preferences, token_logp
from lib.trainers.minibatch import IGNORED
from lib.trainers.preferences import Options, Pairs, Singles

USUAL = Options()
_COLUMNS = ("input_ids", "labels")


@dataclass(frozen=True)
class PreferenceRows(Sequence):
    """Rows {"sequences": two of {"input_ids", "labels"}, "desirable", "reference" [2]}.

    Of a pair the sequences are the question with the preferred and with the other answer; of a single answer they are
    the question with it, and with the answer of another row, by which KTO estimates how far the model went. reference:
    the log-probabilities of both answers, None before `towards`. made_of: the reference's fingerprints.
    """

    rows: tuple[dict, ...]
    made_of: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place]

    @property
    def identity(self) -> str:
        """SHA-256 of tokens, labels, and the reference."""
        content = [[each[name].tolist() for each in row["sequences"] for name in _COLUMNS] for row in self.rows]
        labels = [row["desirable"] for row in self.rows]
        return hashlib.sha256(json.dumps([content, labels, self.made_of]).encode()).hexdigest()

    def towards(self, reference: nn.Module) -> "PreferenceRows":
        """The same rows with the log-probabilities of both sequences by `reference`, computed once."""
        found = []
        with logits.evaluating(reference), torch.no_grad():
            for row in progress.bar(self.rows, desc="reference", unit="row"):
                place = logits.device(reference)
                batch = {name: each.to(place) for name, each in minibatch.collate(list(row["sequences"])).items()}
                found.append({**row, "reference": token_logp.of_rows(reference, batch)[0].float().cpu()})
        made_of = {"reference": checkpoints.fingerprint(reference), "layers": structure.fingerprint(reference)}
        return PreferenceRows(tuple(found), made_of)


def pairs(conversations: Sequence[Conversation], tokenizer, *, length: int) -> PreferenceRows:
    """Rows of preferences, of at most `length` tokens; those of which an answer does not fit go, and are counted."""
    answer_rows.check(tokenizer, length, "last")
    sides = [(each.turns, (each.chosen, each.rejected), each.where) for each in conversations]
    if wrong := next((where for _, answers, where in sides if None in answers), None):
        raise ValueError(f"{wrong} has no two answers; pairs of a preferred and a rejected one are needed; use them.")
    return _rows([[_sequence(turns, one, tokenizer, length, where) for one in both] for turns, both, where in sides])


def singles(conversations: Sequence[Conversation], tokenizer, *, length: int) -> PreferenceRows:
    """Rows of answers with one label each. Raises ValueError for one class alone, of which nothing can be learned."""
    answer_rows.check(tokenizer, length, "last")
    labels = [each.desirable for each in conversations]
    if None in labels or len(set(labels)) < 2:
        raise ValueError(
            f"{labels.count(True)} desirable and {labels.count(False)} undesirable answers of {len(labels)}; both "
            "kinds are needed, and a label for each; add the other kind."
        )
    answers = [each.turns[-1].text for each in conversations]
    others = [*answers[1:], answers[0]]
    made = []
    for each, own, other in zip(conversations, answers, others):
        made.append([_sequence(each.turns[:-1], one, tokenizer, length, each.where) for one in (own, other)])
    return _rows(made, labels)


def _sequence(turns: Sequence[Turn], answer: str, tokenizer, length: int, where: str) -> dict | None:
    """The row of a question with one answer; None where no token of the answer fits."""
    whole = (*turns, Turn("assistant", answer))
    ids, labels, _ = answer_rows.encode(whole, tokenizer, answers="last", where=where)
    labels = labels[:length]
    return {"input_ids": ids[:length], "labels": labels} if (labels[1:] != IGNORED).any() else None


def _rows(both: list[list[dict | None]], labels: Sequence[bool] | None = None) -> PreferenceRows:
    named = zip(both, labels or [True] * len(both))
    kept = tuple(
        {"sequences": tuple(sequences), "desirable": label, "reference": None}
        for sequences, label in named
        if None not in sequences
    )
    if not kept:
        raise ValueError(f"none of {len(both)} rows has an answer that fits; allow more tokens.")
    print(f"{len(kept)} of {len(both)} rows; the others have an answer that does not fit")
    return PreferenceRows(kept)


def collate(rows: list[dict]) -> dict[str, Tensor]:
    """A batch of `rows`: all first sequences, then all second ones; `reference` [2 rows], `desirable` [rows]."""
    batch = minibatch.collate([row["sequences"][place] for place in (0, 1) for row in rows])
    if rows[0]["reference"] is not None:
        batch["reference"] = torch.cat([torch.stack([row["reference"][place] for row in rows]) for place in (0, 1)])
    return batch | {"desirable": torch.tensor([row["desirable"] for row in rows])}


@dataclass(frozen=True, eq=False)
class Loss:
    """One of `preferences.PREFERENCES` on rows as `collate` makes them; called as `loss(model, batch)`.

    seen: of each forward pass the mean reward margin β (h_w - h_l), the share of pairs in which it is above 0, the
    estimate of KL(π || π_ref) by the answers (nats an answer), and their mean number of tokens.
    """

    name: str
    options: Options = USUAL
    seen: list[dict] = field(default_factory=list, repr=False)
    mean_over = "rows"
    evaluates = True  # π and π_ref must differ by what was learned alone: no dropout

    def __post_init__(self):
        preferences.by_name(self.name)

    @property
    def identity(self) -> dict:
        """Settings that determine the result of a training with this loss."""
        return {"loss": self.name, **dataclasses.asdict(self.options)}

    def __call__(self, model: nn.Module, batch: dict) -> Tensor:
        """The mean over the rows. Raises ValueError for rows without reference, and for one row in KTO's baseline."""
        row = preferences.by_name(self.name)
        if row.reference and "reference" not in batch:
            raise ValueError(
                f"{self.name} compares with a reference; call `rows.towards(reference)` before the training."
            )
        logp, tokens = token_logp.of_rows(model, {name: batch[name] for name in (*_COLUMNS, "attention_mask")})
        first, second = logp.chunk(2)
        known = batch["reference"].to(logp).chunk(2) if "reference" in batch else (None, None)
        if row.pairs:
            given = Pairs(first, second, *known, *tokens.chunk(2))
            self._note(given)
            return row.loss(given, self.options).mean()
        if len(first) < 2:
            raise ValueError(
                "kto with one row in a forward pass: its baseline is a mean over the other rows' answers; give "
                "micro_batch=2 or more."
            )
        baseline = (second - known[1]).mean().detach().clamp(min=0)
        desirable = batch["desirable"].to(logp.device)
        return row.loss(Singles(first, known[0], desirable, baseline), self.options).mean()

    @torch.no_grad()
    def _note(self, given: Pairs) -> None:
        reference = given.reference_chosen is not None
        h_w, h_l = given.ratios if reference else (given.chosen, given.rejected)
        margin = self.options.beta * (h_w - h_l)
        lengths = torch.cat([given.chosen_tokens, given.rejected_tokens]).float()
        self.seen.append({
            "margin": margin.mean().item(), "accuracy": (margin > 0).float().mean().item(),
            "kl": torch.cat([h_w, h_l]).mean().item() if reference else None, "tokens": lengths.mean().item(),
        })  # fmt: skip
