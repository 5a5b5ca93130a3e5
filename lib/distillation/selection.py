"""Which answers of a teacher a student learns from: not those that repeat themselves, nor those that were cut off."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lib.distillation.teacher_data import Answers

GRAM = 4  # tokens in a row that count as a repetition when they come again
REPEATED = 0.3  # share of repeated passages above which an answer goes round in circles


def repeated(tokens: Sequence[int]) -> float:
    """Share of the passages of `GRAM` tokens that occurred earlier in the same answer; 0 of a shorter one."""
    passages = [tuple(tokens[place : place + GRAM]) for place in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(passages)) / len(passages) if passages else 0.0


def kept(answers: Answers, *, most_repeated: float = REPEATED, truncated: bool = False) -> Answers:
    """Those `answers` that end by themselves and do not repeat themselves; prints how many went, and why.

    most_repeated: share of repeated passages up to which an answer stays. truncated: whether answers stay that were
    cut at their longest, as continuations of a text always are. Empty answers go. Raises ValueError where none stays.
    """
    if not 0 <= most_repeated <= 1:
        raise ValueError(f"most_repeated={most_repeated}; it is a share: 0 to 1 are allowed; {REPEATED} is usual.")
    reasons = [_reason(row, most_repeated, truncated) for row in answers.rows]
    gone = Counter(reason for reason in reasons if reason)
    print(f"{reasons.count('')} of {len(answers)} answers stay" + "".join(f", {n} {why}" for why, n in gone.items()))
    found = Answers(tuple(row for row, reason in zip(answers.rows, reasons) if not reason))
    if not found:
        raise ValueError(f"none of {len(answers)} answers is left; let the teacher write longer ones, or allow more.")
    return found


def _reason(row: dict, most_repeated: float, truncated: bool) -> str:
    """Why an answer goes, "" for one that stays."""
    if not row["answer"]:
        return "empty"
    if row["reason"] == "length" and not truncated:
        return "cut off"
    return "repeating themselves" if repeated(row["answer"]) > most_repeated else ""


@dataclass(frozen=True)
class Mixture(Sequence):
    """Rows of several data sets: entry i is (name of the set, place in it)."""

    parts: dict[str, Sequence]
    places: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place):
        name, inside = self.places[place]
        return self.parts[name][inside]


def mixed(parts: dict[str, Sequence], shares: dict[str, float], *, count: int, seed: int = 0) -> Mixture:
    """`count` rows of which each of `parts` gives its share, drawn without repetition, in random order.

    shares: numbers above 0, in proportion to each other. Raises ValueError for shares of other names, and where a part
    has too few rows.
    """
    if parts.keys() != shares.keys() or not shares or min(shares.values()) <= 0 or count < 1:
        raise ValueError(
            f"shares={shares} of parts {sorted(parts)} and count={count}; a positive share for each part and 1 row or "
            "more are needed; name the same parts in both."
        )
    exact = {name: count * share / sum(shares.values()) for name, share in shares.items()}
    counts = {name: int(number) for name, number in exact.items()}
    for name in sorted(exact, key=lambda each: counts[each] - exact[each])[: count - sum(counts.values())]:
        counts[name] += 1  # the largest remainders
    draw, places = random.Random(seed), []
    for name, number in counts.items():
        if number > len(parts[name]):
            raise ValueError(f"{number} rows of {name!r} are wanted and it has {len(parts[name])}; ask for fewer rows.")
        places += [(name, inside) for inside in draw.sample(range(len(parts[name])), number)]
    draw.shuffle(places)
    return Mixture(dict(parts), tuple(places))
