"""Conversations from the usual data sets, in one form: turns with a role and a text, and what is known about answers.

Formats, told apart by their keys (`FORMATS`): Alpaca's instructions, ShareGPT's and OpenAI's turns, a prompt with a
completion, pairs of a preferred and a rejected answer (texts, turns, or Anthropic's "\\n\\nHuman:" dialogues), and
answers with a single label (KTO).
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lib import files, tokenization
from lib.sources import conversation_rows, note, readers

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


def read(
    source: Path | str | Iterable[dict],
    *,
    name: str | None = None,
    broken: str = "refuse",
    count: int | None = None,
    split: str | None = None,
) -> list[Conversation]:
    """The conversations of a file, a folder, a data set of the Hub, or of rows; what was read is printed and noted.

    source: as `conversation_rows.of` says: "packaged", `.jsonl`, `.json` and `.parquet`, also inside THIMBLE_DATA,
    "OWNER/NAME" of the Hub, or dicts. count: the first rows only. split: "train", "valid" or "test" of data that have
    such, 80/10/10 % in order of others; None is all of a file, "train" of the first kind. broken: "refuse" rows that
    are no conversation, or "skip" them, counted, the first named. Raises ValueError, with file and line, for a row of
    no known format, for turns out of order, empty turns, and tools; FileNotFoundError for what is not there.
    """
    if broken not in BROKEN:
        raise ValueError(f"broken={broken!r}; {files.choices(broken, BROKEN)}")
    if split not in (None, *readers.SPLITS):
        raise ValueError(f"split={split!r} is unknown; {files.choices(str(split), readers.SPLITS)}")
    rows, shown = conversation_rows.of(source, name, count, split or "train")
    found, skipped = [], []
    for where, row in rows:
        try:
            found.append(conversation(row, where))
        except ValueError as error:
            if broken == "refuse":
                raise
            skipped.append(str(error))
    if split is not None and not conversation_rows.is_split(source):
        found, shown = readers.part(found, split), f"{shown}, {split}"
    if not found:
        said = f"; {len(skipped)} were left out, the first: {skipped[0]}" if skipped else ""
        raise ValueError(f"{shown} has no rows of conversations{said}; give some.")
    sha256 = hashlib.sha256("\n".join(map(repr, found)).encode()).hexdigest()
    note(kind="conversations", name=shown, origin=shown, sha256=sha256)
    left = f"; {len(skipped)} left out, the first: {skipped[0]}" if skipped else ""
    print(f"conversations {shown}: {len(found)} rows, sha256 {sha256[:8]}{left}")
    return found


def conversation(row: dict, where: str = "a row") -> Conversation:
    """One row, whichever of `FORMATS` it has."""
    if tools := row.get("tools") or row.get("functions"):
        raise ValueError(f"{where} has tools ({_named(tools)}), which are not supported; leave such rows out.")
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


def _named(tools) -> str:
    """The names of tools, in a list or as JSON, cut where they are long."""
    names = re.findall(r"[\"']name[\"']\s*:\s*[\"']([^\"']+)", str(tools))
    return ", ".join(names or [str(tools)])[:80]


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
