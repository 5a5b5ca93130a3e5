"""The tables of a study of preferences: what each loss does to likelihoods, what is forgotten, who differs from whom.

    python -m lib.report.preference_tables cpu       # writes data/published/preferences.json

± is one standard error over seeds, what one training's luck does; an interval in brackets is over the held-out pairs,
of which every training sees the same.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from lib import published
from lib.alignment import judging, presets, study
from lib.alignment.presets import Arm, Preset
from lib.metrics import intervals, seeds, verdicts
from lib.report import publishing
from lib.report.tables import fmt

NAME = "preferences"
_COLUMNS = {  # title -> one number of a record
    "learned, % of pairs": lambda one: 100 * statistics.fmean(one["learned"]),
    "likelier a token, % of pairs": lambda one: 100 * statistics.fmean(one["prefers"]),
    "chosen, nats": lambda one: statistics.fmean(one["chosen"]),
    "rejected, nats": lambda one: statistics.fmean(one["rejected"]),
    "bits a byte": lambda one: one["bits_per_byte"],
    "forgotten, nats a token": lambda one: statistics.fmean(one["forgotten"]),
    "KL, nats an answer": lambda one: statistics.fmean(one["answer_kl"]),
    "tokens an answer": lambda one: statistics.fmean(one["answer_tokens"]),
    "not ended, %": lambda one: 100 * one["over_length"],
}


def title(arm: Arm) -> str:
    """As a reader sees it."""
    return arm.loss if arm.way == "full" else f"{arm.loss}, {arm.way}, {arm.bits} bits"


def spread(values: list[float]) -> str:
    """Mean ± standard error of the values of seeds."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return fmt(statistics.fmean(values), error)


class Records:
    """What a study in a folder has: arm -> seed -> record, and the models before it by bits."""

    def __init__(self, folder: Path | str, preset: Preset):
        found = study.records(folder)
        self.arms: dict[Arm, dict[int, dict]] = {arm: {} for arm in preset.arms}
        for one in found:
            if "diverged" not in one:
                self.arms[Arm(**one["arm"])][one["seed"]] = one
        self.arms = {arm: ones for arm, ones in self.arms.items() if len(ones) >= seeds.LEAST}
        there = {path.stem: json.loads(path.read_text()) for path in (Path(folder) / study.BEFORE).glob("*.json")}
        self.judge = there.pop("judge", {"right": []})["right"]
        self.before = {int(bits): one for bits, one in there.items()}
        if not self.arms:
            raise ValueError(
                f"{folder} has {len(found)} trainings, no arm {seeds.LEAST} seeds; go on with the study: "
                "python -m lib.alignment.study."
            )


def tables(made: Records) -> dict[str, dict]:
    """All tables that the records allow."""
    found = {"models": _models(made), "learned": _learned(made), "pairs": _pairs(made)}
    found |= {f"{side} by step": _curve(made, side) for side in ("chosen", "rejected")}
    if made.judge:
        found["wins"] = _wins(made)
    if any(one["tasks"] for ones in made.arms.values() for one in ones.values()):
        found["tasks"] = _tasks(made)
    return found


def _table(said: str, columns: list[str], rows: Iterable[list]) -> dict:
    return {"title": said, "columns": columns, "rows": [[str(each) for each in row] for row in rows]}


def _percent(share: intervals.Interval) -> list[str]:
    return [f"{100 * each:.1f}" for each in (share.value, share.low, share.high)]


def _models(made: Records) -> dict:
    rows = []
    for bits, one in sorted(made.before.items(), reverse=True):
        shown = [fmt(each(one)) if place else "–" for place, each in enumerate(_COLUMNS.values())]
        rows.append([f"before, {bits} bits", "–", "–", *shown])
    for arm, ones in made.arms.items():
        shown = [spread([each(one) for one in ones.values()]) for each in _COLUMNS.values()]
        rows.append([title(arm), len(ones), f"{next(iter(ones.values()))['rate']:g}", *shown])
    return _table(
        "Models before and after, on pairs that none was trained on", ["model", "seeds", "rate", *_COLUMNS], rows
    )


def _learned(made: Records) -> dict:
    """The share of pairs in which the preferred answer gained more, over pairs: a pair's value is its seeds' mean."""
    rows = []
    for arm, ones in made.arms.items():
        share = intervals.mean(np.mean([one["learned"] for one in ones.values()], 0))
        said = "more than a coin" if share.low > 0.5 else "less" if share.high < 0.5 else "not told from a coin"
        rows.append([title(arm), share.n, *_percent(share), said])
    said = "Share of held-out pairs in which the preferred answer gained more than the other, %"
    return _table(said, ["model", "pairs", "share", "from", "to", "answer"], rows)


def _pairs(made: Records) -> dict:
    """Every arm against the first, seed by seed, by the one paired test, with Holm's correction over the table."""
    (first, base), *others = made.arms.items()
    measured = {"learned, % of pairs": 1, "forgotten, nats a token": -1, "bits a byte": -1}
    differences: dict[tuple[str, str], list[float]] = {}
    for name, sign in measured.items():
        value: Callable = _COLUMNS[name]
        for arm, ones in others:
            common = sorted(set(ones) & set(base))
            if len(common) >= seeds.LEAST:
                differences[title(arm), name] = [sign * (value(ones[seed]) - value(base[seed])) for seed in common]
    answers = verdicts.verdicts(differences)
    rows = []
    for (arm, name), gains in differences.items():
        found, answer = seeds.spread(dict(enumerate(gains))), answers[arm, name]
        shown = [fmt(found.value, found.stderr), f"{found.low:.4g}", f"{found.high:.4g}", f"{answer.p:.2g}", answer]
        rows.append([f"{arm}: {name}", found.n, *shown])
    said = f"Against {title(first)}, paired by seed; a gain is more learned, less forgotten, fewer bits"
    return _table(said, ["pair", "seeds", "gain", "from", "to", "p (Holm)", "answer"], rows)


def _curve(made: Records, side: str) -> dict:
    """The mean over seeds of what a loss noted at each step; KTO notes single answers."""
    names = {"chosen": ("chosen", "desirable"), "rejected": ("rejected", "undesirable")}[side]
    shown = {}
    for arm, ones in made.arms.items():
        noted = [next(one["measures"][name] for name in names if name in one["measures"]) for one in ones.values()]
        shown[title(arm)] = [[each for each in at if each is not None] for at in zip(*noted)]
    steps = max(map(len, shown.values()), default=0)
    rows = [
        [step + 1, *(spread(each[step]) if each[step] else "–" for each in shown.values())] for step in range(steps)
    ]
    said = f"By how many nats the {side} answers of a step's pairs became likelier"
    return _table(said, ["step", *shown], rows)


def _wins(made: Records) -> dict:
    """How often a trained model's answer beats that of the model before it, by the reward model and its own error."""
    judge, rows = intervals.mean(made.judge), []
    rows.append(["the judge's own accuracy", judge.n, *_percent(judge), "–"])
    for arm, ones in made.arms.items():
        before = made.before[arm.bits]["rewards"]
        ours = [value for one in ones.values() for value in one["rewards"]]
        found = judging.win_rate(ours, before * len(ones), judge, groups=[*range(len(before))] * len(ones))
        true = found.corrected
        said = "not known" if true is None else f"{100 * true.value:.0f} [{100 * true.low:.0f}, {100 * true.high:.0f}]"
        rows.append([title(arm), found.observed.n, *_percent(found.observed), said])
    said = "Answers that win over those of the model before training, %, by the reward model"
    return _table(said, ["model", "answers", "share", "from", "to", "without the judge's errors"], rows)


def _tasks(made: Records) -> dict:
    names = [(task, metric) for task, scores in next(iter(made.before.values()))["tasks"].items() for metric in scores]
    rows = []
    for task, metric in names:
        before = [fmt(one["tasks"][task][metric]) for one in made.before.values()]
        after = [spread([one["tasks"][task][metric] for one in ones.values()]) for ones in made.arms.values()]
        rows.append([f"{task} {metric}", *before, *after])
    columns = [*(f"before, {bits} bits" for bits in made.before), *map(title, made.arms)]
    return _table("Instructions followed and refusals, before and after", ["score", *columns], rows)


def of(preset: str, folder: Path | None = None) -> published.Published:
    """The tables of a preset's study (in `folder`), in the form of those that are published."""
    made = presets.by_name(preset)
    return published.Published(NAME, **document(folder or study.place(preset), made))


def document(folder: Path | str, preset: Preset, notes: Iterable[str] = ()) -> dict:
    """What `published.load` reads: the fields of a `Published`, without its name."""
    made = Records(folder, preset)
    counts = sorted({len(ones) for ones in made.arms.values()})
    protocol = (
        f"{preset.steps} steps of {preset.batch} pairs of {preset.pairs}, drawn from {preset.train} of at most "
        f"{preset.length} tokens; judged on {preset.held_out} others; {' to '.join(map(str, counts))} seeds, each with "
        f"one order of the pairs in all arms; learning rates chosen on {preset.trial} more."
    )
    about = publishing.about("15_preferences", "", protocol)
    return about | {"tables": tables(made), "notes": list(notes)}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""

    def made(preset: str, folder: Path | None, notes: list[str]) -> dict:
        return document(folder or study.place(preset), presets.by_name(preset), notes)

    return publishing.main(NAME, "preference_tables", presets.PRESETS, made, arguments)


if __name__ == "__main__":
    sys.exit(main())
