"""The data that a training accepts, checked and described before the first step."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lib import files
from lib.models import rotary
from lib.sources import texts, token_windows
from lib.trainers import minibatch, sequence_packing


@dataclass(frozen=True)
class Source:
    """Rows to train on: `count` of them with `tokens` in all; None where that is unknown before they are read.

    rows: row dicts, sized or an iterable. identity: fingerprint of the data, None where there is none.
    """

    rows: Sequence[dict] | Iterable[dict]
    count: int | None
    tokens: int | None
    identity: str | None
    alike: bool = False  # whether all rows have the same length and learn every token

    @property
    def length(self) -> float | None:
        """Mean number of tokens per row; an integer where all rows have the same length."""
        if self.tokens is None:
            return None
        return self.tokens // self.count if self.alike else self.tokens / self.count

    def described(self) -> str:
        """The amount of data, in words."""
        if self.count is None:
            return "the stream"
        return f"the {self.count} windows of {self.length} tokens" if self.alike else f"the {self.count} rows"

    def tell_passes(self, rows: int) -> None:
        """Print how often the data is gone through, where a training reads more `rows` than there are."""
        if self.count is not None and rows > self.count:
            amount = "" if self.length is None else f"{rows * self.length:,.0f} tokens of "
            print(f"{amount}training are {rows / self.count:.3g} passes over {self.described()}")


def of(data, model: nn.Module, *, checked: bool = True) -> Source:
    """The `Source` for any data that `loop.train_` accepts.

    checked: whether rows must be tokens for `model`; a custom collator may take others. Raises ValueError for rows that
    the model can't be trained on, TypeError for data without rows.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, Tensor | texts.Windows | texts.Text | token_windows.Rows):
        return _windows(texts.rows(data, model))
    if isinstance(data, sequence_packing.PackedSequences):
        return _packed(data, model)
    columns = getattr(data, "column_names", None)
    if checked and columns is not None and "input_ids" not in columns:
        raise ValueError(f"the data set has columns {', '.join(columns)}; it needs input_ids; tokenize it first.")
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return _rows(data, model, columns) if checked else Source(data, len(data), None, _identity(data))
    if hasattr(data, "__iter__"):
        return Source(data, None, None, _identity(data))
    raise TypeError(
        f"a {type(data).__name__} was given as data; windows of text, token ids [count, length], and sized or iterable "
        "data sets of rows with input_ids are allowed; give one of these."
    )


def check_tables(model: nn.Module, source: Source, micro_batch: int) -> None:
    """Raise ValueError where rows of one forward pass would use the position tables of the longest one."""
    if micro_batch > 1 and not source.alike and rotary.Tables.of(model).change:
        raise ValueError(
            f"micro_batch={micro_batch} rows of unequal lengths, and position tables of {type(model).__name__} that "
            "change with the length: a row would depend on those beside it; give micro_batch=1."
        )


def in_steps(source: Source, model: nn.Module, settings: dict, *, checked: bool = True) -> Dataset:
    """The rows of all steps in their order, as torch's data loaders take them; settings: steps, batch and seed."""
    check = minibatch.checker(model) if checked else lambda row, place: row
    if source.count is None:
        return minibatch.StreamedRows(source.rows, batch=settings["batch"], check=check)
    order = {name: settings[name] for name in ("steps", "batch", "seed")}
    return minibatch.ShuffledRows(source.rows, **order, check=check)


class Windows(Sequence):
    """Token ids [count, length] as rows."""

    def __init__(self, ids: Tensor | token_windows.Rows):
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place):
        return {"input_ids": self.ids[place]}


def _windows(ids: Tensor | token_windows.Rows) -> Source:
    return Source(Windows(ids), len(ids), len(ids) * ids.shape[1], files.data_hash(ids), alike=True)


def _packed(data: sequence_packing.PackedSequences, model: nn.Module) -> Source:
    """Packed documents, which are not looked at row by row: they may be a file larger than memory."""
    known = model.get_input_embeddings().num_embeddings
    if data.largest >= known:
        raise ValueError(
            f"the packed documents have token ids up to {data.largest}; the model knows 0 to {known - 1}; use the "
            "tokenizer that belongs to it."
        )
    return Source(data, len(data), len(data) * data.length, data.identity)


def _rows(data, model: nn.Module, columns) -> Source:
    """A sized data set of rows, each checked once, so that errors are raised before the work."""
    check, hasher, tokens, lengths = minibatch.checker(model), hashlib.sha256(), 0, set()
    for place in range(len(data)):
        row = check(data[place], place)
        tokens += int(row["attention_mask"].sum())
        lengths.add(len(row["input_ids"]) if (row["labels"] == row["input_ids"]).all() else -1)
        for name in sorted(row):
            value = torch.as_tensor(row[name]) if not isinstance(row[name], str) else None
            hasher.update(f"{name} {row[name] if value is None else value.tolist()}".encode())
    if columns is not None and set(columns) == {"input_ids"} and len(lengths) == 1:
        return _windows(torch.tensor(data["input_ids"][:]))  # windows, in another form
    alike = len(lengths) == 1 and -1 not in lengths
    return Source(data, len(data), tokens, hasher.hexdigest(), alike)


def _identity(data) -> str | None:
    """The fingerprint of a data set: its `identity`, or the one that Hugging Face keeps."""
    found = getattr(data, "identity", None) or getattr(data, "_fingerprint", None)
    return None if found is None else str(found)
