"""Preferences as rows to train on: two sequences each, and what the reference thinks of them, computed once and kept.

    rows = preference_rows.pairs(conversations, tokenizer, length=512).towards(reference, folder="...")

The reference is a model in memory, never a path: of a model that was compressed, a file would be another one.
"""

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import checkpoints, files, jobs, progress
from lib.models import logits, structure
from lib.sources.conversations import Conversation, Turn
from lib.trainers import answer_rows, minibatch, processes, token_logp
from lib.trainers.minibatch import IGNORED

PART = 64  # rows of a part of the reference's answers: what a killed job repeats at most
ROWS = 16  # of them in one pass of an accelerator
_COLUMNS = ("input_ids", "labels")
_BYTES = 64  # of a row of a part


@dataclass(frozen=True)
class PreferenceRows(Sequence):
    """Rows {"sequences": two of {"input_ids", "labels"}, "desirable", "reference" [2], "bytes" [2]}.

    Of a pair the sequences are the question with the preferred and with the other answer; of a single answer they are
    the question with it, and with the answer of another row, by which KTO estimates how far the model went. reference:
    the log-probabilities of both answers, None before `towards`; bytes: of their texts, 0 where they were cut. where:
    the data set's row of each. counts: of the conversations, how many were "cut" at the longest length, and left out
    because no token of an answer was left ("dropped") or both answers were the same up to the cut ("alike"). made_of:
    the reference's fingerprints.
    """

    rows: tuple[dict, ...]
    where: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
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

    def some(self, places: Sequence[int]) -> "PreferenceRows":
        """The rows at `places`, in their order."""
        where = tuple(self.where[place] for place in places)
        return replace(self, rows=tuple(self.rows[place] for place in places), where=where, counts={})

    def towards(self, reference: nn.Module, folder: Path | str | None = None) -> "PreferenceRows":
        """The same rows with the log-probabilities of both sequences by `reference`, computed once.

        folder: keeps them, `PART` rows a file, so that a killed job goes on at the first missing one, and the next one
        reads them. Raises ValueError for a folder with those of other rows or of another reference, for files that were
        changed, and for log-probabilities that are not finite; OSError, before the work, where the disk is too small.
        """
        made_of = {"reference": checkpoints.fingerprint(reference), "layers": structure.fingerprint(reference)}
        parts = range(0, len(self.rows), PART)
        with self._kept(folder, made_of), logits.evaluating(reference):
            bar = progress.bar(parts, desc="reference", unit="part")
            found = [each for start in bar for each in self._part(reference, start, folder)]
        rows = tuple({**row, "reference": torch.tensor(each)} for row, each in zip(self.rows, found, strict=True))
        return replace(self, rows=rows, made_of=made_of)

    def _kept(self, folder: Path | str | None, made_of: dict):
        """The job of `towards` in its folder, if it has one."""
        if folder is None:
            return contextlib.nullcontext()
        files.check_writable(Path(folder) / "part", _BYTES * len(self.rows))
        job = {"method": "reference", "rows": replace(self, made_of={}).identity, **made_of}
        return jobs.JobState(folder, alone=processes.leads(), **jobs.environment_fingerprint("trainers"), **job)

    def _part(self, reference: nn.Module, start: int, folder: Path | str | None) -> list[list[float]]:
        """Log-probabilities of both sequences of up to `PART` rows."""
        path = None if folder is None else Path(folder) / f"part-{start // PART:05d}.jsonl"
        if path is not None and path.exists():
            return [row["reference"] for row in jobs.read_rows(path)]
        found, device = [], logits.device(reference)
        at_once = 1 if device.type == "cpu" else ROWS
        for first in range(start, min(start + PART, len(self.rows)), at_once):
            some = self.rows[first : min(first + at_once, start + PART)]
            batch = {name: each.to(device) for name, each in minibatch.collate(_sequences(some)).items()}
            logp = token_logp.of_rows(reference, batch)[0].float().cpu()
            found += torch.stack(logp.chunk(2), dim=1).tolist()
        for where, each in zip(self.where[start:], found):
            if not all(map(math.isfinite, each)):
                raise ValueError(
                    f"the reference gives the answers of {where} the log-probabilities {each}; finite ones are needed; "
                    "check its weights, or load it in bfloat16 or float32."
                )
        if path is not None:
            jobs.write_rows(path, ({"reference": each} for each in found))
        return found


def pairs(conversations: Sequence[Conversation], tokenizer, *, length: int) -> PreferenceRows:
    """Rows of preferences, cut at the right end to `length` tokens; says what was cut and left out.

    Raises ValueError, naming the row, for conversations without two answers, and where no row is left to learn from:
    of answers that differ behind the cut alone, say.
    """
    answer_rows.check(tokenizer, length, "last")
    sides = [(each.turns, (each.chosen, each.rejected), each.where) for each in conversations]
    if wrong := next((where for _, answers, where in sides if None in answers), None):
        raise ValueError(f"{wrong} has no two answers; pairs of a preferred and a rejected one are needed; use them.")
    return _rows(sides, tokenizer, length)


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
    sides = [(each.turns[:-1], both, each.where) for each, *both in zip(conversations, answers, others)]
    return _rows(sides, tokenizer, length, labels)


def split(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Pairs as single answers, the preferred ones desirable and the others not: what KTO learns from the same data."""
    return [
        Conversation((*each.turns, Turn("assistant", text)), f"{each.where}, {name}", desirable=name == "chosen")
        for each in conversations
        for name, text in (("chosen", each.chosen), ("rejected", each.rejected))
    ]


def _rows(sides: list[tuple], tokenizer, length: int, labels: Sequence[bool] | None = None) -> PreferenceRows:
    kept, counts = [], Counter()
    for (turns, answers, where), desirable in zip(sides, labels or [True] * len(sides)):
        both = [answer_rows.encode((*turns, Turn("assistant", one)), tokenizer, answers="last", where=where)[:2]
                for one in answers]  # fmt: skip
        whole = [len(ids) <= length for ids, _ in both]
        counts["cut"] += not all(whole)
        both = [{"input_ids": ids[:length], "labels": each[:length]} for ids, each in both]
        if not all((each["labels"][1:] != IGNORED).any() for each in both):
            counts["dropped"] += 1
        elif labels is None and torch.equal(both[0]["input_ids"], both[1]["input_ids"]):
            counts["alike"] += 1
        else:
            sizes = [len(one.encode()) if entire else 0 for one, entire in zip(answers, whole)]
            kept.append((where, {"sequences": tuple(both), "desirable": desirable, "reference": None, "bytes": sizes}))
    said = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
    if not kept:
        raise ValueError(
            f"none of {len(sides)} rows has answers within {length} tokens that differ ({said}); allow more tokens."
        )
    print(f"{len(kept)} of {len(sides)} rows" + (f"; {said}" if said else ""))
    return PreferenceRows(tuple(row for _, row in kept), tuple(where for where, _ in kept), dict(counts))


def _sequences(rows: Sequence[dict]) -> list[dict]:
    """All first sequences of `rows`, then all second ones."""
    return [row["sequences"][place] for place in (0, 1) for row in rows]


def collate(rows: list[dict]) -> dict[str, Tensor]:
    """A batch of `rows`: all first sequences, then all second ones; `reference` [2 rows], `desirable` [rows]."""
    batch = minibatch.collate(_sequences(rows))
    if rows[0]["reference"] is not None:
        batch["reference"] = torch.cat([torch.stack([row["reference"][place] for row in rows]) for place in (0, 1)])
    return batch | {"desirable": torch.tensor([row["desirable"] for row in rows])}
