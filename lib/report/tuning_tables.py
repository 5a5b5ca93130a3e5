"""The study of orders as tables: what every model costs and reached, and pairs over seeds.

python -m lib.report.tuning_tables evening     # writes data/published/tuning.json
"""

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lib import published
from lib.analysis.architecture_pairs import compared
from lib.finetuning import orders, presets, study
from lib.metrics import seeds, verdicts
from lib.report import publishing
from lib.report.tables import fmt

NAME = "tuning"
FIRST = "compressed"
MEASURES = {"bits per byte": "bits_per_byte", "KL, nats": "kl"}


class Records:
    """The records of a study by (arm, bits): seed -> number."""

    def __init__(self, preset: presets.Preset, found: list[dict]):
        self.preset, self.found = preset, found

    def models(self) -> list[tuple[str, int]]:
        """(Arm, bits) of which all seeds are recorded, at 16 bits first."""
        wanted = [("original", 16), ("tuned", 16)]
        wanted += [(arm, bits) for bits in self.preset.bits for arm in (FIRST, *orders.TUNED)]
        return [each for each in wanted if self._whole(*each)]

    def values(self, arm: str, bits: int, key: str) -> dict[int, float]:
        """Seed -> number; arms without a training have one for all seeds."""
        ours = {each["seed"]: each[key] for each in self._of(arm, bits)}
        if arm in ("original", FIRST) and ours:
            return dict.fromkeys(self.preset.seeds, ours[0])
        return ours

    def tasks(self) -> list[str]:
        """The tasks whose questions every model answered."""
        return sorted(set.intersection(*(set(each.get("tasks", {})) for each in self.found))) if self.found else []

    def right(self, arm: str, bits: int, task: str) -> np.ndarray:
        """Of each question the share of seeds that answer it right [questions]."""
        return np.mean([each["tasks"][task] for each in self._of(arm, bits)], 0)

    def _of(self, arm: str, bits: int) -> list[dict]:
        return [each for each in self.found if (each["arm"], each["bits"]) == (arm, bits)]

    def _whole(self, arm: str, bits: int) -> bool:
        return len(self.values(arm, bits, "kl")) == len(self.preset.seeds)


def shown(arm: str, bits: int) -> str:
    """A model's name in a table."""
    return f"{arm}, {bits} bits"


def tables(preset: presets.Preset, folder: Path | str) -> dict[str, dict]:
    """The tables of the study in `folder`; ValueError where no arm is finished."""
    found = Records(preset, study.records(folder))
    if not found.models():
        raise ValueError(f"{folder} holds no arm with all seeds; go on with the study.")
    made = {"models": _models(found), "pairs": _pairs(found), "tasks": _tasks(found)}
    made["rates"] = _rates(preset, Path(folder))
    return {name: table for name, table in made.items() if table["rows"]}


def _models(found: Records) -> dict:
    rows = []
    for arm, bits in found.models():
        row = [shown(arm, bits)]
        for key in MEASURES.values():
            values = found.values(arm, bits, key)
            alone = arm in ("original", FIRST)
            spread = None if alone else seeds.spread(values)
            value, error = (values[next(iter(values))], None) if alone else (spread.value, spread.stderr)
            row.append(f"{value:.4f}" if error is None else fmt(value, error))
        one = found._of(arm, bits)[0]
        row += [f"{100 * statistics.fmean(found.right(arm, bits, task)):.1f}" for task in found.tasks()]
        row += [f"{one['bytes'] / 1e6:.1f}", str(one.get("steps", 0)), f"{one['making_seconds']:.0f}"]
        rows.append(row)
    columns = ["", *MEASURES, *(f"{task}, %" for task in found.tasks()), "MB", "steps", "merging and compressing, s"]
    return {
        "title": "Every arm: loss on unseen answers, divergence on plain text, size",
        "columns": columns,
        "rows": rows,
    }


def pairs_of(found: Records) -> dict[str, tuple[tuple[str, int], tuple[str, int]]]:
    """Name -> the two arms that are compared: every tuned one with the compressed one, and with the first order."""
    there, made = found.models(), {}
    for bits in found.preset.bits:
        for arm in orders.TUNED:
            for other in (FIRST, "tune, compress"):
                if arm != other and {(arm, bits), (other, bits)} <= set(there):
                    made[f"{arm} against {other}, {bits} bits"] = (arm, bits), (other, bits)
    return made


def _pairs(found: Records) -> dict:
    """Gains over seeds: above 0 the first arm has the lower loss (the lower divergence)."""
    sides = {
        f"{name}: {label}": (found.values(*one, key), found.values(*other, key))
        for name, (one, other) in pairs_of(found).items()
        for label, key in MEASURES.items()
    }
    rows = []
    for name, each in compared(sides).items():
        gain = each.gain
        span = [f"{gain.low:.4f}", f"{gain.high:.4f}", f"{each.verdict.p:.2g}"]
        rows.append([name, str(gain.n), fmt(gain.value, gain.stderr), *span, str(each)])
    columns = ["", "seeds", "gain", "from", "to", "p", "answer"]
    return {"title": "In pairs over seeds: above 0 the first arm is better", "columns": columns, "rows": rows}


def _tasks(found: Records) -> dict:
    """Gains over questions, of each the mean over seeds; an interval over questions knows nothing of other seeds."""
    gains = {
        f"{name}: {task}": 100 * (found.right(*one, task) - found.right(*other, task))
        for name, (one, other) in pairs_of(found).items()
        for task in found.tasks()
    }
    answers, rows = verdicts.verdicts(gains) if gains else {}, []
    for name, each in gains.items():
        gain = seeds.spread(dict(enumerate(each)))  # Student, also where all are 0
        span = [f"{gain.low:.1f}", f"{gain.high:.1f}", f"{answers[name].p:.2g}"]
        rows.append([name, str(gain.n), f"{gain.value:.1f}", *span, str(answers[name])])
    columns = ["", "questions", "gain, points", "from", "to", "p", "answer"]
    return {
        "title": "The same over a task's questions: above 0 the first arm is better",
        "columns": columns,
        "rows": rows,
    }


def _rates(preset: presets.Preset, folder: Path) -> dict:
    tried = json.loads((folder / study.RATES).read_text()) if (folder / study.RATES).exists() else {}
    rows = []
    for way, bits in study.trainings(preset):
        names = [orders.Training(way, bits, preset.seeds[0], rate).name for rate in preset.rates]
        if all(name in tried for name in names):
            rows.append([f"{way}, {bits} bits", *(f"{tried[name]:.4f}" for name in names)])
    columns = ["", *(f"{rate:g} × the usual rate" for rate in preset.rates)]
    return {"title": "Bits per byte on the rows that choose a rate, one seed", "columns": columns, "rows": rows}


def of(preset: str, folder: Path | None = None) -> published.Published:
    """The tables of a preset's study (in `folder`), in the form of those that are published."""
    return published.Published(NAME, **document(preset, folder or study.place(preset)))


def document(name: str, folder: Path | str, notes: Iterable[str] = ()) -> dict:
    """What `published.load` reads: the fields of a `Published`, without its name."""
    preset = presets.by_name(name)
    protocol = (
        f"{preset.model}, {preset.data} in rows of at most {preset.length} tokens, {preset.batch} a step, "
        f"{preset.minutes:g} minutes of processor time of training in every arm, rank {preset.rank}, GPTQ in groups of "
        f"{preset.group_size} on {preset.calibration} rows of the training data; {len(preset.seeds)} seeds, paired; "
        f"{preset.unseen} unseen conversations, {preset.windows} windows of {preset.text}."
    )
    about = publishing.about("16_tune_or_compress_first", "tuning.yaml", protocol)
    return about | {"tables": tables(preset, folder), "notes": list(notes)}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""

    def made(preset: str, folder: Path | None, notes: list[str]) -> dict:
        return document(preset, folder or study.place(preset), notes)

    return publishing.main(NAME, "tuning_tables", presets.PRESETS, made, arguments)


if __name__ == "__main__":
    sys.exit(main())
