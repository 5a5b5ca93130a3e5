"""Description of a task: data, one template, one scoring rule. Adding a task is adding one `Form`."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lib.sources import tasks
from lib.tasks.task import Generation, Outcome, Sample


@dataclass(frozen=True)
class Form:
    """The description that turns rows of a data set into a `Task`.

    data, splits: the data set, and which of its splits to read (the first that lies in `$THIMBLE_DATA`).
    build: (row, examples, chat) -> Sample, one line of data in one template. Its id and group are the row's.
    score: (sample, answers) -> metric -> number.
    metrics: names of the numbers, the main one first.
    examples: None, or a function that returns group -> example rows ("" is any group); `shots` of them are shown.
    chance, constant: samples -> metric -> what guessing, and what the best constant answer scores.
    aggregate: metric -> function of [(sample, answers)] for numbers that are no means.
    parts: whether a group of rows can be named as a task of its own ("mmlu_anatomy").
    executes: whether scoring runs programs that a model wrote. lower: metrics where lower is better.
    """

    data: str
    build: Callable
    score: Callable[[Sample, list[Outcome | str]], dict[str, float]]
    metrics: tuple[str, ...]
    splits: tuple[str, ...] = ("test",)
    shots: int = 0
    examples: Callable[[], dict[str, list[dict]]] | None = None
    chance: Callable[[list[Sample]], dict[str, float]] = lambda samples: {}
    constant: Callable[[list[Sample]], dict[str, float]] = lambda samples: {}
    aggregate: dict[str, Callable] = field(default_factory=dict)
    parts: bool = False
    executes: bool = False
    lower: tuple[str, ...] = ()


def of_split(data: str, split: str) -> Callable[[], dict[str, list[dict]]]:
    """Examples from a split of a data set, by group."""

    def read():
        found = {}
        for row in tasks.load(data, split).rows:
            found.setdefault(row["group"], []).append(row)
        return found

    return read


def given(*rows: dict) -> Callable[[], dict[str, list[dict]]]:
    """The same examples for every row."""
    return lambda: {"": list(rows)}


def generation(row: dict, text: str, until: tuple[str, ...], tokens: int, target) -> Sample:
    """A sample that asks for one text."""
    return Sample(row["id"], row["group"], (Generation(text, until, tokens),), target)
