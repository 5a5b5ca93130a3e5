"""Schema of a data set that tasks read: where it lies, how its lines become rows, which fields a row needs."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lib.sources import record_adapters


@dataclass(frozen=True)
class RequiredFields:
    """Required fields of every row.

    texts: fields with text that is not blank; lists: fields with a list of texts, not all of them blank; choices: the
    number of choices (None: two or more, where a row has choices at all).
    """

    texts: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    choices: int | None = None

    def check(self, row: dict) -> None:
        """Raise `KeyError` for a field that `row` lacks, `ValueError` for one that holds something else."""
        for name in self.texts:
            if not _text(row[name]):
                raise ValueError(f"{name} is {_short(row[name])}; it must be a text that is not blank")
        for name in self.lists:
            found = row[name]
            texts = isinstance(found, list) and all(isinstance(each, str) for each in found)
            if not texts or not any(map(_text, found)):
                raise ValueError(f"{name} is {_short(found)}; it must be a list of texts, not all of them blank")
        if self.choices is not None or "choices" in row:
            self._check_choices(row["choices"], row["answer"])

    def _check_choices(self, choices, answer):
        """Check that choices are non-empty texts, as many as required, and that the answer is one of them."""
        if self.choices is not None and len(choices) != self.choices:
            raise ValueError(f"it has {len(choices)} choices; exactly {self.choices} are needed")
        texts = isinstance(choices, list) and all(isinstance(choice, str) and choice for choice in choices)
        if not texts or len(choices) < 2:
            raise ValueError("choices must be two texts or more, none of them empty")
        if not 0 <= answer < len(choices):
            raise ValueError(f"answer {answer} is none of {len(choices)} choices")


@dataclass(frozen=True)
class Benchmark:
    """One data set.

    files: split -> files inside `$THIMBLE_DATA`, read in this order; line: converts a line of them into a row. hub,
    configs, revision: on the Hub; splits: split -> its name there; hub_line: converts a row of the Hub.
    needs: what a row must hold. origin: for a data set without a revision, where its files can be had.
    """

    licence: str
    citation: str
    files: dict[str, tuple[str, ...]]
    line: Callable[[dict], dict] = record_adapters.same
    hub: str | None = None
    configs: tuple[str | None, ...] = (None,)
    revision: str | None = None
    splits: dict[str, str] = field(default_factory=dict)
    hub_line: Callable[[dict], dict] | None = None
    needs: RequiredFields = RequiredFields()
    origin: str = ""


def _text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
