"""What each rung of the ladder is worth over seeds: grid, block by block, end to end, teacher's answers, losses, codes.

    python -m lib.distillation.rungs rungs --seeds 5 --hours 2

Each rung differs from the one that it stands on in exactly one thing, and seed k draws the same windows for all of
them. A record is one student, measured as the pipeline measures its own; a study that was killed goes on at the first
that is missing.
"""

import argparse
import copy
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from lib import files, jobs, timing
from lib.distillation import pipeline, presets
from lib.distillation.judging import Judge
from lib.distillation.training_text import Windows
from lib.metrics import seeds
from lib.sources import models

NOTE, RECORDS = "rungs.json", "records"
ANSWERED = 4 / 3  # answers of the teacher in place of each window that they replace, which have about as many tokens
MOVES = (1e-4, 1e-3)  # steps of their grid that codes may move at most in a step of the optimizer


class Rung(NamedTuple):
    """What a rung stands on, and what it changes of the preset; `start`: the rung whose codes it begins with."""

    on: str | None
    changes: dict
    start: str | None = None
    again: bool = False  # it reads the windows of the calibration again
    answered: bool = False  # half of the windows give way to answers


_BLOCKS, _SCALES = "block by block", "scales end to end"
RUNGS = {
    "whole zero points": Rung(None, {"start": "gptq", "levels": "integer"}),
    "halves": Rung("whole zero points", {"start": "gptq"}),
    _BLOCKS: Rung("halves", {}),
    "through 4 bits": Rung(_BLOCKS, {"through": (4,)}),
    _SCALES: Rung(_BLOCKS, {}, _BLOCKS),
    "calibration again": Rung(_SCALES, {}, _BLOCKS, again=True),
    "answers of the teacher": Rung(_SCALES, {}, _BLOCKS, answered=True),
    "reverse KL": Rung(_SCALES, {"divergence": "reverse_kl"}, _BLOCKS),
    "CAKLD": Rung(_SCALES, {"divergence": "cakld"}, _BLOCKS),
    "Jensen-Shannon": Rung(_SCALES, {"divergence": "jensen_shannon"}, _BLOCKS),
    "norms": Rung(_SCALES, {"norms": True}, _BLOCKS),
} | {f"codes, {rate:g} steps": Rung(_SCALES, {"code_steps": rate}, _BLOCKS) for rate in MOVES}


def place(preset: str) -> Path:
    """The folder of a study in the cache."""
    return pipeline.place(preset) / "study"


def run(preset: str | presets.Preset, folder: Path | str, *, number: int = 5, hours: float | None = None) -> list[dict]:
    """Make and measure the students of all rungs that `folder` lacks, for seeds 0 to `number` - 1; `records`.

    hours: after which nothing is begun. Raises ValueError for fewer seeds than an interval takes and for a folder of
    another preset or model, and what the pipeline raises before its work.
    """
    made = presets.by_name(preset) if isinstance(preset, str) else preset
    wanted = seeds.check(list(range(number)))
    folder, ends = Path(folder), None if hours is None else time.monotonic() + 3600 * hours
    original, _ = models.load(made.model)
    job = {name: str(value) for name, value in dataclasses.asdict(made).items()} | jobs.fingerprint(original)
    files.check_writable(folder / NOTE, 64 << 20)
    if not files.write_first(folder / NOTE, json.dumps(job, indent=1)):
        jobs.same_job(folder, json.loads((folder / NOTE).read_text()), job)
    judge = None
    for seed in wanted:
        for start in [name for name, rung in RUNGS.items() if rung.start is None]:
            missing = [name for name in _beside(start) if not record(folder, name, seed).exists()]
            if missing and (ends is None or time.monotonic() < ends):
                judge = judge or Judge.of(original, made.judged, windows=made.judge, length=made.length)
                for name, student, seconds in _students(original, made, start, missing, seed, folder, ends):
                    rows = judge(name, student)
                    found = {"rung": name, "seed": seed, "seconds": seconds, "rows": rows}
                    files.write_text(record(folder, name, seed), json.dumps(found))
                    print(f"{name}, seed {seed}: " + ", ".join(f"{row['kl']:.4f}" for row in rows), flush=True)
    return records(folder)


def record(folder: Path, name: str, seed: int) -> Path:
    """The file of a student."""
    return folder / RECORDS / f"{name.replace(', ', ' ')} {seed}.json"


def records(folder: Path | str) -> list[dict]:
    """What is finished of the study in `folder`."""
    return [json.loads(path.read_text()) for path in sorted((Path(folder) / RECORDS).glob("*.json"))]


def _beside(start: str) -> list[str]:
    """The rungs that need the codes of `start`, itself first."""
    return [start, *(name for name, rung in RUNGS.items() if rung.start == start)]


def _students(
    original: nn.Module, preset: presets.Preset, start: str, names: list[str], seed: int, folder: Path, ends
) -> Iterator[tuple[str, nn.Module, float]]:
    """(Rung, its student, processor seconds of what it adds to `start`)."""
    made = dataclasses.replace(preset, seed=seed, **RUNGS[start].changes)
    windows, state = pipeline.windows_of(original, made), folder / "starts" / f"{start} {seed}"
    began = timing.worked()
    student = pipeline.start(original, made, windows, state)
    if start in names:
        yield start, student, timing.worked() - began
    for name in names:
        if name == start or (ends is not None and time.monotonic() > ends):
            continue
        began, copied = timing.worked(), copy.deepcopy(student)
        pipeline.train_(copied, original, *_given(RUNGS[name], made, windows))
        yield name, copied, timing.worked() - began


def _given(rung: Rung, made: presets.Preset, windows: Windows) -> tuple[presets.Preset, Windows]:
    """The preset and the windows of a rung that trains."""
    made, training = dataclasses.replace(made, **rung.changes), windows.training
    if rung.again:
        passes = -(-len(training) // len(windows.calibration))
        training = torch.cat([windows.calibration] * passes)[: len(training)]
    if rung.answered:
        replaced = len(training) // 2
        training, made = training[replaced:], dataclasses.replace(made, answers=round(ANSWERED * replaced))
    return made, dataclasses.replace(windows, training=training)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.distillation.rungs", description="What each rung is worth.")
    parser.add_argument("preset", help=f"one of {', '.join(presets.PRESETS)}")
    parser.add_argument("--folder", type=Path, help="where its records are kept")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--hours", type=float, help="after which nothing is begun")
    given = parser.parse_args(arguments)
    folder = given.folder or place(given.preset)
    try:
        found = run(given.preset, folder, number=given.seeds, hours=given.hours)
    except (ValueError, OSError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(found)} students are recorded in {folder}, {given.seeds * len(RUNGS) - len(found)} are missing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
