"""Conversations from the usual data sets, in one form: turns with a role and a text, and what is known about answers.

Formats, told apart by their keys (`FORMATS`): Alpaca's instructions, ShareGPT's and OpenAI's turns, a prompt with a
completion, pairs of a preferred and a rejected answer (texts, turns, or Anthropic's "\\n\\nHuman:" dialogues), and
answers with a single label (KTO).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lib import files, tokenization
from lib.sources import file_formats, note

ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "model": "assistant",
}  # fmt: skip
BROKEN = ("refuse", "skip")
TOOLS = ("tool", "function", "function_call", "observation", "ipython")
_DIALOGUE = re.compile(r"\n\n(Human|Assistant):")


class Turn(NamedTuple):
    """What one side says. role: "system", "user" or "assistant"."""

    role: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """A row of a data set in one form.

    turns: up to the last answer; for a preference, up to the question. chosen, rejected: the two answers of a
    preference. desirable: KTO's label of the last answer. where: the row's file and line.
    """

    turns: tuple[Turn, ...]
    where: str
    chosen: str | None = None
    rejected: str | None = None
    desirable: bool | None = None


def read(source: Path | str | Iterable[dict], *, name: str | None = None, broken: str = "refuse") -> list[Conversation]:
    """The conversations of a `.jsonl` or `.parquet` file, or of rows such as a Hub data set's, printed and noted.

    broken: "refuse" rows that are no conversation, or "skip" them, counted, the first named. Raises
    ValueError, with file and line, for a row of no known format, for turns out of order, empty turns, and tools;
    FileNotFoundError without the file.
    """
    if broken not in BROKEN:
        raise ValueError(f"broken={broken!r}; {files.choices(broken, BROKEN)}")
    rows = _rows(Path(source)) if isinstance(source, Path | str) else _numbered(source, name or "the data")
    found, skipped = [], []
    for where, row in rows:
        try:
            found.append(conversation(row, where))
        except ValueError as error:
            if broken == "refuse":
                raise
            skipped.append(str(error))
    if not found:
        raise ValueError(f"{source if isinstance(source, Path | str) else name or 'the data'} has no rows; give some.")
    shown = name or (files.place(Path(source)) if isinstance(source, Path | str) else "rows")
    sha256 = hashlib.sha256("\n".join(map(repr, found)).encode()).hexdigest()
    note(kind="conversations", name=shown, origin=shown, sha256=sha256)
    left = f"; {len(skipped)} left out, the first: {skipped[0]}" if skipped else ""
    print(f"conversations {shown}: {len(found)} rows, sha256 {sha256[:8]}{left}")
    return found


def conversation(row: dict, where: str = "a row") -> Conversation:
    """One row, whichever of `FORMATS` it has."""
    build = next((each.build for each in FORMATS.values() if each.keys <= _given(row)), None)
    if build is None:
        nearest = max(FORMATS, key=lambda name: len(FORMATS[name].keys & set(row)) / len(FORMATS[name].keys))
        raise ValueError(
            f"{where} has the keys {sorted(row)}, which is no known format; the nearest is {nearest}, with "
            f"{sorted(FORMATS[nearest].keys)}; known are {', '.join(FORMATS)}; rename the columns."
        )
    found = build(row, where)
    _check(found)
    return found


def _given(row: dict) -> set[str]:
    """The keys of a row that hold something: columns of other formats in one table are None."""
    return {key for key, value in row.items() if value is not None}


def _alpaca(row: dict, where: str) -> Conversation:
    asked = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
    system = (Turn("system", row["system"]),) if row.get("system") else ()
    before = tuple(Turn(*turn) for pair in row.get("history") or () for turn in zip(("user", "assistant"), pair))
    return Conversation((*system, *before, Turn("user", asked), Turn("assistant", row["output"])), where)


def _turns(given, where: str) -> tuple[Turn, ...]:
    """Turns from a text (a user's), a list of turns, or one turn, in OpenAI's or ShareGPT's keys."""
    if isinstance(given, str):
        parts = _DIALOGUE.split(given)
        if len(parts) < 3 or parts[0].strip():
            return (Turn("user", given),)
        named = zip(parts[1::2], parts[2::2])
        return tuple(Turn(ROLES[role.lower()], text.strip()) for role, text in named)
    return tuple(_turn(each, where) for each in ([given] if isinstance(given, dict) else given))


def _turn(given: dict, where: str) -> Turn:
    role, text = given.get("role", given.get("from")), given.get("content", given.get("value"))
    if role in TOOLS or given.get("tool_calls") or given.get("function_call"):
        raise ValueError(f"{where} has a turn of {role!r} with tools, which are not supported; leave such rows out.")
    if role not in ROLES or not isinstance(text, str):
        raise ValueError(
            f"{where} has a turn with role {role!r} and a {type(text).__name__}; {files.choices(str(role), ROLES)}, "
            "and a text is needed; mend the row."
        )
    return Turn(ROLES[role], text)


def _openai(row: dict, where: str) -> Conversation:
    return Conversation(_turns(row["messages"], where), where)


def _sharegpt(row: dict, where: str) -> Conversation:
    system = (Turn("system", row["system"]),) if row.get("system") else ()
    return Conversation((*system, *_turns(row["conversations"], where)), where)


def _completion(row: dict, where: str) -> Conversation:
    return Conversation((*_turns(row["prompt"], where), Turn("assistant", _answer(row["completion"], where))), where)


def _kto(row: dict, where: str) -> Conversation:
    if not isinstance(row["label"], bool):
        raise ValueError(f"{where} has label={row['label']!r}; true (desirable) and false are allowed; mend the row.")
    plain = _completion(row, where)
    return Conversation(plain.turns, where, desirable=row["label"])


def _preference(row: dict, where: str) -> Conversation:
    """A pair; without a prompt of its own, it is what both sides have in common before the last answer."""
    asked = next((_turns(row[key], where) for key in ("prompt", "conversations") if row.get(key) is not None), None)
    sides = [_turns(row[key], where) for key in ("chosen", "rejected")]
    if asked is None:
        asked = sides[0][:-1]
        if sides[1][:-1] != asked or not asked:
            raise ValueError(
                f"{where} has answers to different questions: 'chosen' and 'rejected' must be equal up to the last "
                "answer, or the question be in 'prompt'; mend the row."
            )
    chosen, rejected = (_answer(row[key], where) for key in ("chosen", "rejected"))
    if chosen == rejected:
        raise ValueError(f"{where} prefers an answer to itself; two that differ are needed; leave such rows out.")
    return Conversation(asked, where, chosen=chosen, rejected=rejected)


def _answer(given, where: str) -> str:
    """The last answer: a text as it is, or the last of several turns."""
    turns = _turns(given, where)
    if isinstance(given, str) and len(turns) == 1:
        return given
    if turns[-1].role != "assistant":
        raise ValueError(f"{where} ends with a turn of the {turns[-1].role}; an answer is needed; mend the row.")
    return turns[-1].text


class Format(NamedTuple):
    """The keys by which a format is known, and how a row of it becomes a `Conversation`."""

    keys: set[str]
    build: Callable[[dict, str], Conversation]


FORMATS = {  # the first whose keys a row has: those with more keys before those with fewer
    "preference": Format({"chosen", "rejected"}, _preference),
    "kto": Format({"prompt", "completion", "label"}, _kto),
    "prompt and completion": Format({"prompt", "completion"}, _completion),
    "alpaca": Format({"instruction", "output"}, _alpaca),
    "openai": Format({"messages"}, _openai),
    "sharegpt": Format({"conversations"}, _sharegpt),
}


def _check(found: Conversation) -> None:
    """Raise ValueError for turns that are empty, in a wrong order, or without the answer that a row is read for."""
    answers = {"chosen": found.chosen, "rejected": found.rejected}
    said = [*found.turns, *(Turn(name, text) for name, text in answers.items() if text is not None)]
    for turn in said:
        tokenization.check(turn.text, f"{found.where}, turn of the {turn.role},")
        if not turn.text.strip():
            raise ValueError(f"{found.where} has an empty turn of the {turn.role}; text is needed; leave it out.")
    roles = [turn.role for turn in found.turns]
    spoken = roles[roles[:1] == ["system"] :]
    wanted = ["user", "assistant"] * len(spoken)
    last = "user" if found.chosen is not None else "assistant"
    if spoken != wanted[: len(spoken)] or not spoken or spoken[-1] != last:
        raise ValueError(
            f"{found.where} has turns of {', '.join(roles) or 'nobody'}; user and assistant must take turns, behind at "
            f"most one of the system, up to one of the {last}; mend the row."
        )


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; a .jsonl or .parquet file is needed; check the path.")
    if path.suffix == ".jsonl":
        yield from file_formats.objects(path)
    elif path.suffix == ".parquet":
        import pyarrow.parquet  # loads slowly, and serves this kind of file alone

        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(256):
            yield from _numbered(batch.to_pylist(), files.place(path))
    elif path.suffix == ".json":
        yield from _numbered(json.loads(path.read_text(encoding="utf-8")), files.place(path))
    else:
        raise ValueError(f"{path} ends in {path.suffix!r}; conversations are .jsonl, .json and .parquet; convert it.")


def _numbered(rows: Iterable[dict], name: str) -> Iterator[tuple[str, dict]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{name} row {number} is a {type(row).__name__}; objects with named columns are allowed.")
        yield f"{name} row {number}", row
