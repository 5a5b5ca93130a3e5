"""Tasks by name: `load(name)` forms samples from data, templates and examples, ready for any engine.

Adding a task is one row in a family's table `TASKS`, or one small file with such a table, listed here.
"""

import hashlib
import random
from dataclasses import replace
from pathlib import Path

from lib import extensions, files
from lib.sources import tasks as source
from lib.tasks import (
    bbh,
    cloze,
    commonsense_thought,
    gsm8k,
    humaneval,
    ifeval,
    long_context,
    mmlu,
    multiple_choice,
    packaged,
    toxicchat,
    trace,
    truthfulqa,
    xstest,
)
from lib.tasks.form import Form
from lib.tasks.prompt import check_chat
from lib.tasks.task import Task

GROUPS = {
    "multiple choice": (multiple_choice, mmlu, cloze, truthfulqa),
    "generation": (gsm8k, bbh, commonsense_thought, trace, long_context),
    "code": (humaneval,),
    "instruction following": (ifeval,),
    "safety": (toxicchat, xstest),
    "packaged": (packaged,),
}
FAMILIES = tuple(family for families in GROUPS.values() for family in families)
TASKS: dict[str, Form] = {name: form for family in FAMILIES for name, form in family.TASKS.items()}


def load(
    name: str,
    *,
    count: int | None = None,
    each: int | None = None,
    seed: int = 0,
    shots: int | None = None,
    chat=None,
    split: str | None = None,
    repeats: int = 1,
    allow_execution: bool = False,
) -> Task:
    """A task, ready to be evaluated.

    name: a key of `TASKS`, or that of a task with parts and one of them ("mmlu_anatomy", "bbh_navigate").
    count: samples drawn by `seed` from all (a larger count holds a smaller one's samples); each: from every group.
    shots: examples before each question (None: the task's usual number). chat: a tokenizer whose chat template
    forms the prompts; None: plain text. split: which split of the data (None: the usual one).
    repeats: answers per sample, for pass@k of an engine that samples. allow_execution: must be True for tasks that run
    what a model wrote. Raises `ValueError` for what is unknown or malformed, `FileNotFoundError` for absent data,
    `PermissionError` where code would be run that nobody asked to run.
    """
    form, part = find(name)
    _check(name, form, count=count, each=each, repeats=repeats, allowed=allow_execution)
    check_chat(chat)
    found = source.load(form.data, (split,) if split else form.splits)
    rows = _part(name, found.rows, part)
    shots, examples = _examples(name, form, shots)
    drawn = _draw(rows, count, each, seed)
    samples = [_formed(form, row, _shown(examples, row["group"], shots), chat, found) for row in drawn]
    samples = [replace(sample, requests=sample.requests * repeats) for sample in samples]
    data = _described(found) | {"available": len(rows), "shots": shots, "chat": _template(chat), "count": count}
    data |= {"each": each, "seed": seed, "repeats": repeats, "lower_is_better": form.lower}
    metrics = form.metrics + tuple(f"pass@{k}" for k in (10, 100) if form.executes and k <= repeats)
    chance, constant = (_only(metrics, baseline(samples)) for baseline in (form.chance, form.constant))
    return Task(name, samples, metrics, chance, constant, data, form.score, dict(form.aggregate))


def group(name: str) -> str:
    """The group of `GROUPS` that a task, or a part of one, belongs to; raises ValueError for unknown names."""
    form, _ = find(name)
    if extensions.is_path(name):
        return "own"
    owned = ((group, own) for group, families in GROUPS.items() for each in families for own in each.TASKS.values())
    return next(group for group, own in owned if own is form)


def find(name):
    """(the form, the part of it) that a name, or the path of a Python file with a `FORM`, asks for; else ValueError."""
    if extensions.is_path(name):
        form = extensions.load(name, "FORM").FORM
        return replace(form, data=str(Path(name).expanduser().parent / form.data)), None
    if name in TASKS:
        return TASKS[name], None
    for base in sorted(TASKS, key=len, reverse=True):
        if TASKS[base].parts and name.startswith(base + "_"):
            return TASKS[base], name[len(base) + 1 :]
    with_parts = ", ".join(f"{base}_PART" for base, form in TASKS.items() if form.parts)
    raise ValueError(f"task {name!r} is unknown; {files.choices(name, TASKS)} (Or a part: {with_parts}.)")


def _check(name, form, *, count, each, repeats, allowed):
    for label, value in (("count", count), ("each", each), ("repeats", repeats)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{label}={value!r}; whole numbers from 1 are allowed; give one, or leave it out.")
    if count and each:
        raise ValueError(f"count={count} and each={each}; one of them is allowed; count is of all, each of a group.")
    if repeats > 1 and not form.executes:
        raise ValueError(f"repeats={repeats} for {name!r}; several answers are scored by pass@k only; leave it out.")
    if form.executes and allowed is not True:
        raise PermissionError(
            f"task {name!r} runs programs that a model wrote; allow_execution=True is needed (they run without "
            "network, in an empty folder, under limits); pass it if you want that, or take another task."
        )


def _part(name, rows, part):
    groups = {row["group"] for row in rows}
    if part is not None and part not in groups:
        raise ValueError(f"task {name!r}: part {part!r} is unknown; {files.choices(part, groups)}")
    return rows if part is None else [row for row in rows if row["group"] == part]


def _examples(name, form, shots):
    shots = form.shots if shots is None else shots
    if not isinstance(shots, int) or shots < 0:
        raise ValueError(f"shots={shots!r}; whole numbers from 0 are allowed; give one, or leave it out.")
    if shots and form.examples is None:
        raise ValueError(f"shots={shots} for {name!r}, which has no fixed examples; only 0 is allowed; leave it out.")
    examples = form.examples() if shots else {}
    fewest = min((len(rows) for rows in examples.values()), default=shots)
    if shots > fewest:
        raise ValueError(f"shots={shots} for {name!r}; its data hold {fewest} examples; ask for 0 to {fewest}.")
    return shots, examples


def _shown(examples, group, shots):
    if not shots:
        return []
    if group not in examples and "" not in examples:
        raise ValueError(f"no examples for {group!r} among {len(examples)} groups of them; ask for shots=0.")
    return examples.get(group, examples.get(""))[:shots]


def _formed(form, row, examples, chat, found):
    """A row in its template; one that does not fill it raises `ValueError` with its file and line."""
    try:
        return form.build(row, examples, chat)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise source.malformed(found.places[row["id"]], found.name, error, row) from error


def _draw(rows, count, each, seed):
    """`count` rows of all or `each` of every group, in their order; the draw is a prefix of one permutation."""
    if count is None and each is None:
        return rows
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    if count is not None:
        if count > len(rows):
            raise ValueError(f"count={count}; the data have {len(rows)} samples; ask for 1 to {len(rows)}.")
        return [rows[index] for index in sorted(order[:count])]
    groups: dict[str, list[int]] = {}
    for index in order:
        groups.setdefault(rows[index]["group"], []).append(index)
    return [rows[index] for index in sorted(index for found in groups.values() for index in found[:each])]


def _described(found):
    """Description of the data."""
    names = {"source": found.origin, "sha256": found.sha256, "split": found.split}
    return names | {"licence": found.licence, "citation": found.citation}


def _template(chat):
    """Identity of the chat template: None for plain text, else its SHA-256."""
    if chat is None:
        return None
    return hashlib.sha256(str(chat.chat_template).encode()).hexdigest()[:16]


def _only(metrics, values):
    return {metric: values[metric] for metric in metrics if metric in values}
