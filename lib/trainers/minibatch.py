"""Training rows (windows of text, rows of unequal lengths, or a stream), and their collation into batches.

A row is a dict with `input_ids` [length] and optionally `labels` (-100 at positions without loss), `attention_mask` and
further columns. A batch stacks these columns to [rows, length], padded at the right.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from lib.trainers.schedule import Order

IGNORED = -100  # label of positions without loss
PADDING = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0}


def collate(rows: list[dict]) -> dict[str, Tensor]:
    """A batch of `rows`: input_ids, labels and attention_mask padded at the right, other columns stacked."""
    rows, batch = [complete(row) for row in rows], {}
    longest = max(len(row["input_ids"]) for row in rows)
    for name in rows[0]:
        values = [torch.as_tensor(row[name]) for row in rows]
        if name in PADDING:
            pads = [values[0].new_full((longest - len(each),), PADDING[name]) for each in values]
            values = [torch.cat([each, pad]) if len(pad) else each for each, pad in zip(values, pads)]
        batch[name] = torch.stack(values)
    return batch


def complete(row: dict) -> dict:
    """`row` with labels (its tokens, unless it has labels) and an attention mask."""
    ids = torch.as_tensor(row["input_ids"])
    mask = torch.as_tensor(row["attention_mask"]) if "attention_mask" in row else torch.ones_like(ids)
    labels = torch.as_tensor(row["labels"]) if "labels" in row else ids
    return {**row, "input_ids": ids, "labels": labels.masked_fill(mask == 0, IGNORED), "attention_mask": mask}


def targets(batch: dict) -> Tensor:
    """The target tokens [n] of `batch`, row after row."""
    return select(batch.get("labels", batch["input_ids"])[:, 1:], batch)


def select(values: Tensor, batch: dict) -> Tensor:
    """The entries [n, ...] of `values` [rows, length - 1, ...] at the positions that predict `targets`."""
    learned = batch.get("labels", batch["input_ids"])[:, 1:] != IGNORED
    return values.flatten(0, 1) if learned.all() else values[learned.to(values.device)]


def inputs(batch: dict) -> dict[str, Tensor]:
    """The model's arguments from `batch`: tokens, positions of packed documents, a mask where there is padding."""
    mask = batch.get("attention_mask")
    given = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
    return given if mask is None or mask.all() else {**given, "attention_mask": mask}


class ShuffledRows(Dataset):
    """The rows of all steps, one after the other: `rows` (sized) in a random order that depends on `seed`.

    Each row gets its index (`window`), its step, from 0, and the numbers of tokens and targets of its whole step.
    """

    def __init__(self, rows, *, steps: int, batch: int, seed: int, check: Callable[[dict, int], dict]):
        self.rows, self.steps, self.batch, self.check = rows, steps, batch, check
        self.order, self._step = Order(len(rows), seed), (-1, [])

    def __len__(self) -> int:
        return self.steps * self.batch

    def __getitem__(self, place: int) -> dict:
        step = place // self.batch
        if self._step[0] != step:
            places = [self.order[each] for each in range(step * self.batch, (step + 1) * self.batch)]
            rows = with_totals([(each, self.check(self.rows[each], each)) for each in places])
            self._step = step, [{**row, "step": step} for row in rows]
        return self._step[1][place % self.batch]


class StreamedRows(IterableDataset):
    """The rows of an iterable in its own order, `batch` per step; it starts again when it ends."""

    def __init__(self, rows: Iterable[dict], *, batch: int, check: Callable[[dict, int], dict]):
        self.rows, self.batch, self.check = rows, batch, check

    def __iter__(self) -> Iterator[dict]:
        waiting, place = [], 0
        while True:
            before = place
            for row in self.rows:
                waiting.append((place, self.check(row, place)))
                place += 1
                if len(waiting) == self.batch:
                    yield from with_totals(waiting)
                    waiting = []
            if place == before:
                raise ValueError(
                    f"the data ended after {place} rows and begins no second time; a training reads batches of "
                    f"{self.batch}; give more rows, or an iterable that can be gone through again (no generator)."
                )


def with_totals(rows: list[tuple[int, dict]]) -> list[dict]:
    """The rows of a step, from (place, row) pairs, each with its place and the step's numbers of tokens and targets."""
    whole = {}
    if all("attention_mask" in row for _, row in rows):
        whole["step_tokens"] = sum(int(row["attention_mask"].sum()) for _, row in rows)
        whole["step_targets"] = sum(int((row["labels"][1:] != IGNORED).sum()) for _, row in rows)
    return [{**row, "window": place, **whole} for place, row in rows]


def checker(model: nn.Module) -> Callable[[dict, int], dict]:
    """A function (row, its place) -> the complete row; ValueError for one that `model` can't be trained on."""
    vocabulary = model.get_input_embeddings().num_embeddings

    def check(row: dict, place: int) -> dict:
        if not hasattr(row, "keys") or "input_ids" not in row:
            has = f"columns {', '.join(row)}" if hasattr(row, "keys") else f"a {type(row).__name__}"
            raise ValueError(f"row {place} of the data has {has}; it needs input_ids; tokenize the text first.")
        ids, lengths = torch.as_tensor(row["input_ids"]), {name: len(row[name]) for name in PADDING if name in row}
        if ids.ndim != 1 or len(ids) < 2 or len(set(lengths.values())) > 1:
            raise ValueError(
                f"row {place} of the data has {lengths}; 2 or more tokens are allowed, and as many labels and entries "
                "of the mask; change the row."
            )
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise ValueError(
                f"row {place} of the data has token ids from {int(ids.min())} to {int(ids.max())}; the model knows 0 "
                f"to {vocabulary - 1}; use the tokenizer that belongs to it."
            )
        return complete(dict(row))

    return check
