"""A study of preference trainings: arms and seeds, each kept as one record, judged on pairs that none has seen.

    python -m lib.alignment.study cpu

A study that was killed goes on where it was, a training in the midst of its steps. Seed k gives every arm the same
pairs in the same order, so arms are compared in pairs, seed by seed. First each kind of training is tried with every
learning rate of its way on the first seed; the one with the smallest loss on the trial pairs is taken.
"""

import argparse
import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path

from lib import files
from lib.alignment import presets
from lib.alignment.judged_training import NOTE, Run, Study
from lib.alignment.presets import Arm, Preset
from lib.folders.turns import Alone
from lib.metrics import seeds
from lib.trainers.divergence import Diverged

RECORDS, TRIALS, BEFORE = "records", "trials", "before"


def place(preset: str) -> Path:
    """The folder of a preset's study where no other is given: recomputable, so it lies in the cache."""
    return files.cache() / "studies" / f"preferences-{preset}"


def run(preset: str | Preset, folder: Path | str, *, hours: float | None = None) -> list[dict]:
    """Train and judge all that is missing of a study in `folder`; returns `records`.

    hours: after which no training is begun. Raises ValueError for a folder with another study, for seeds that give no
    interval, and what loading and training raise. A training that diverges is recorded as such.
    """
    made = presets.by_name(preset) if isinstance(preset, str) else preset
    folder, began = Path(folder), time.monotonic()
    files.check_writable(folder / NOTE)
    folder.mkdir(parents=True, exist_ok=True)
    turn = Alone(folder)
    try:
        study = Study(made, folder)
        for what, name, work in _work(study):
            path = folder / what / f"{name}.json"
            if path.exists():
                continue
            if hours is not None and time.monotonic() - began > hours * 3600:
                break
            files.write_text(path, json.dumps(work()))
            print(f"{what} {name}: done", flush=True)
    finally:
        turn.end()
    return records(folder)


def _work(study: Study):
    """(Kind, name, function that makes its record) of all that a study does, in order."""
    preset, folder = study.preset, study.folder
    for bits in sorted({arm.bits for arm in preset.arms}, reverse=True):
        arm = next(each for each in preset.arms if each.bits == bits)
        yield BEFORE, str(bits), lambda arm=arm: study.judge(study.before(arm.bits), arm)
    if preset.judge:
        yield BEFORE, "judge", lambda: {"right": study.judged_right()}
    for arm in preset.arms:
        for rate in preset.rates[arm.way] if len(preset.rates[arm.way]) > 1 else ():
            each = Run(arm, preset.seeds[0], rate)
            yield TRIALS, each.name, lambda each=each: _tried(study, each)
    # an interval takes so many seeds: each arm gets them first, so that a study which is stopped has whole arms
    for some in (preset.seeds[: seeds.LEAST], preset.seeds[seeds.LEAST :]):
        for arm, seed in itertools.product(preset.arms, some):
            each = Run(arm, seed, best_rate(preset, folder, arm))
            yield RECORDS, each.name, lambda each=each: _recorded(study, each)


def _tried(study: Study, each: Run) -> dict:
    known = dataclasses.asdict(each)
    try:
        model, _ = study.train(each)
    except Diverged as error:
        return known | {"loss": None, "diverged": str(error)}
    return known | {"loss": study.trial_loss(model, each.arm)}


def _recorded(study: Study, each: Run) -> dict:
    known = dataclasses.asdict(each)
    try:
        model, noted = study.train(each)
    except Diverged as error:
        return known | {"diverged": str(error)}
    return known | noted | study.judge(model, each.arm)


def best_rate(preset: Preset, folder: Path | str, arm: Arm) -> float:
    """The rate with the smallest trial loss, or the only one; ValueError where every one diverged."""
    if len(preset.rates[arm.way]) == 1:
        return preset.rates[arm.way][0]
    tried = {
        rate: _read(folder, TRIALS, Run(arm, preset.seeds[0], rate).name)["loss"] for rate in preset.rates[arm.way]
    }
    good = {rate: loss for rate, loss in tried.items() if loss is not None}
    if not good:
        raise ValueError(f"{arm.name} diverged at every rate of {[*tried]}; lower ones are needed; add some.")
    return min(good, key=good.get)


def _read(folder: Path | str, what: str, name: str) -> dict:
    return json.loads((Path(folder) / what / f"{name}.json").read_text(encoding="utf-8"))


def records(folder: Path | str, what: str = RECORDS) -> list[dict]:
    """What is finished of the study in `folder`, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((Path(folder) / what).glob("*.json"))]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.alignment.study", description="Run a study of preferences.")
    parser.add_argument("preset", help=f"one of {', '.join(presets.PRESETS)}")
    parser.add_argument("--folder", type=Path, help="where its records and models are kept")
    parser.add_argument("--hours", type=float, help="after which no training is begun")
    given = parser.parse_args(arguments)
    folder = given.folder or place(given.preset)
    try:
        found = run(given.preset, folder, hours=given.hours)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(found)} trainings are recorded in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
