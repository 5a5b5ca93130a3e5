"""Preferences on the one training loop: the losses of `preferences` on rows of two sequences each.

rows = preference_rows.pairs(conversations, tokenizer, length=512).towards(reference)
loss = preference_training.Loss("dpo", Options(beta=0.1))
loop.train_(model, rows, loss, collate=preference_rows.collate, batch=4, micro_batch=2, steps=100, ...)
"""

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lib.trainers import preferences, processes, token_logp
from lib.trainers.measures import Measures, rows
from lib.trainers.preferences import Options, Pairs, Singles

USUAL = Options()
_COLUMNS = ("input_ids", "labels", "attention_mask")


@dataclass(frozen=True, eq=False)
class Loss:
    """One of `preferences.PREFERENCES` on rows as `preference_rows.collate` makes them; called as `loss(model, batch)`.

    measures: what `History.measures` then has of each step. Of pairs: "chosen" and "rejected", by how many nats the
    model finds each answer likelier than the reference does (without a reference: its log-probability); "margin", the
    mean difference of the loss's own rewards, and "accuracy", the share of pairs in which it is above 0. Of single
    answers: "desirable" and "undesirable", and "kl", KTO's estimate z₀ of KL(π || π_ref). Of both: "tokens" of an
    answer, and "entropy", nats a token of it.
    """

    name: str
    options: Options = USUAL
    measures: Measures = field(default_factory=Measures, repr=False)
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
        return (self._of_pairs if row.pairs else self._of_singles)(model, batch).mean()

    def _of_pairs(self, model: nn.Module, batch: dict) -> Tensor:
        found = token_logp.with_entropy(model, {name: batch[name] for name in _COLUMNS})
        known = batch["reference"].to(found.logp).chunk(2) if "reference" in batch else (None, None)
        given = Pairs(*found.logp.chunk(2), *known, *found.tokens.chunk(2))
        self._note_pairs(given, found)
        return preferences.by_name(self.name).loss(given, self.options)

    def _of_singles(self, model: nn.Module, batch: dict) -> Tensor:
        own, other = ({name: batch[name].chunk(2)[place] for name in _COLUMNS} for place in (0, 1))
        known = batch["reference"].chunk(2)
        with torch.no_grad():
            gone = token_logp.of_rows(model, other)[0]
        gone = gone - known[1].to(gone)
        total, count = processes.added(torch.stack([gone.sum(), torch.full_like(gone[0], len(gone))]))
        if count < 2:
            raise ValueError(
                "kto with one row in a forward pass: its baseline is a mean over the other rows' answers; give "
                "micro_batch=2 or more."
            )
        found = token_logp.with_entropy(model, own)
        given = Singles(found.logp, known[0].to(found.logp), batch["desirable"].to(found.logp.device),
                        (total / count).clamp(min=0))  # fmt: skip
        self._note_singles(given, found)
        return preferences.by_name(self.name).loss(given, self.options)

    @torch.no_grad()
    def _note_pairs(self, given: Pairs, found: token_logp.Found) -> None:
        h_w, h_l = given.ratios if given.reference_chosen is not None else (given.chosen, given.rejected)
        margin = preferences.margins(self.name, given, self.options)
        self.measures.note(
            chosen=rows(h_w), rejected=rows(h_l), margin=rows(margin), accuracy=rows(margin > 0),
            tokens=rows(found.tokens), entropy=(found.entropy.sum(), found.tokens.sum()),
        )  # fmt: skip

    @torch.no_grad()
    def _note_singles(self, given: Singles, found: token_logp.Found) -> None:
        h = given.answer - given.reference
        self.measures.note(
            desirable=rows(h[given.desirable]), undesirable=rows(h[~given.desirable]), kl=(given.baseline, 1),
            tokens=rows(found.tokens), entropy=(found.entropy.sum(), found.tokens.sum()),
        )  # fmt: skip
