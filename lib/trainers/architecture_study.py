"""A study of architectures: many trainings, one after the other, each kept as one record.

    python -m lib.trainers.architecture_study cpu

A study that was killed goes on where it was, and several processes may work on one: each takes trainings that no other
has. First every arm is tried with every learning rate, at the first number of blocks and with the first seed. Then the
first arm is trained with all seeds, whose spread says, before any comparison, which difference can be seen (`power`).
Then all arms follow with their best rates, seed by seed, so that a study that is stopped has whole pairs; other depths
come last, one after the other.
"""

import argparse
import dataclasses
import json
import math
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lib import architectures, files, jobs
from lib.folders.turns import Alone
from lib.metrics import count, memory, peaks, seeds
from lib.sources import models
from lib.trainers import checkpoints, divergence, from_scratch, presets, processes

RECORDS, TRAININGS, NOTE, POWER = "records", "trainings", "study.json", "power.json"
_ROOM = 1 << 20  # bytes of a record
_WAIT = 2.0  # seconds until a process looks again whether another has finished


@dataclass(frozen=True)
class Run:
    """One training of a study."""

    arm: str
    blocks: int
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """As its files are called."""
        return f"{self.arm}-{self.blocks}-{self.seed}-{self.rate:g}"


def place(preset: str) -> Path:
    """The folder of a preset's study where no other is given: recomputable, so it lies in the cache."""
    return files.cache() / "studies" / preset


def rates(preset: presets.Preset) -> list[Run]:
    """The trainings that choose each arm's learning rate."""
    return [Run(arm, preset.blocks[0], preset.seeds[0], rate) for rate in preset.rates for arm in preset.arms]


def best_rates(preset: presets.Preset, records: list[dict]) -> dict[str, float]:
    """The learning rate of each arm with the fewest bits per byte; ValueError while some are not tried."""
    found = {}
    for arm in preset.arms:
        tried = {each["rate"]: each for each in records if Run(**_named(each)) in rates(preset) and each["arm"] == arm}
        if missing := [rate for rate in preset.rates if rate not in tried]:
            raise ValueError(
                f"{arm!r} was not trained with the learning rate {missing[0]:g}; all of {_listed(preset.rates)} are "
                "needed to choose one; go on with the study."
            )
        good = {rate: each["bits_per_byte"] for rate, each in tried.items() if each["bits_per_byte"] is not None}
        if not good:
            tried = _listed(preset.rates)
            raise ValueError(f"{arm!r} diverged at every rate of {tried}; lower ones are needed; add some.")
        found[arm] = min(good, key=good.get)
    return found


def trainings(preset: presets.Preset, chosen: dict[str, float]) -> list[Run]:
    """All trainings at each arm's `chosen` rate, in order; the first arm with one block more is a rival of all."""
    first, *others = preset.blocks
    nearest = [depth for depth in others if depth == first + 1]
    order = [(arm, first) for arm in preset.arms]
    order[1:1] = [(arm, depth) for arm in preset.arms[:1] for depth in nearest]
    later = [(arm, depth) for depth in others for arm in preset.curves if (arm, depth) not in order]
    runs = [(*each, seed) for some in (order[:1], order) for seed in preset.seeds for each in some]
    runs += [(*each, seed) for each in later for seed in preset.seeds]
    return [Run(arm, depth, seed, chosen[arm]) for arm, depth, seed in dict.fromkeys(runs)]


def power(preset: presets.Preset, records: list[dict]) -> dict[str, float] | None:
    """The spread of the first arm over its seeds, and which difference so many paired seeds show; None until then.

    In bits per byte: deviation, of one training; detectable, in four studies of five, if pairing took out nothing, so
    that a difference had the deviation of two trainings.
    """
    runs = trainings(preset, best_rates(preset, records))[: len(preset.seeds)]
    there = {Run(**_named(each)): each["bits_per_byte"] for each in records}
    if any(there.get(each) is None for each in runs):
        return None
    deviation = statistics.stdev(there[each] for each in runs)
    return {"deviation": deviation, "detectable": seeds.detectable(math.sqrt(2) * deviation, len(runs))}


def run(preset: str | presets.Preset, folder: Path | str, *, hours: float | None = None) -> list[dict]:
    """Train all that is missing of a study in `folder`; returns `records`.

    hours: after which no training is begun. Raises ValueError for a folder with another study, and for seeds that give
    no interval; what `from_scratch.corpus` and `train` raise. A training that diverges is recorded as such.
    """
    made = presets.by_name(preset) if isinstance(preset, str) else preset
    seeds.check(list(made.seeds))
    processes.check_alone("a study, whose trainings are shared by processes that are started by themselves", "a GPU")
    folder, began = Path(folder), time.monotonic()
    corpus = from_scratch.corpus(made)
    files.check_writable(folder / NOTE, disk_bytes(made, len(corpus.tokenizer)) if not (folder / NOTE).exists() else 0)
    _same_study(folder, made, corpus)
    while missing := _missing(made, folder):
        worked = False
        for each in missing:
            if hours is not None and time.monotonic() - began > hours * 3600:
                return records(folder)
            worked |= _done(each, corpus, folder)
        if not worked:
            time.sleep(_WAIT)  # others have them
    return records(folder)


def records(folder: Path | str) -> list[dict]:
    """What is finished of the study in `folder`, by name; none where there is no such folder."""
    return [json.loads(path.read_text()) for path in sorted((Path(folder) / RECORDS).glob("*.json"))]


def name(record: dict) -> str:
    """What the files of a record's training are called."""
    return Run(**_named(record)).name


def model_folder(folder: Path | str, record: dict) -> Path:
    """Where the model of a record lies."""
    return Path(folder) / TRAININGS / name(record) / "model"


def _missing(preset: presets.Preset, folder: Path) -> list[Run]:
    """The trainings without a record: those of the learning rates first, which decide the others."""
    there = {path.stem for path in (folder / RECORDS).glob("*.json")}
    if tries := [each for each in rates(preset) if each.name not in there]:
        return tries
    found, count = records(folder), len(preset.seeds)
    if expected := power(preset, found):
        files.write_first(folder / POWER, json.dumps(expected | {"trainings before": len(found)}, indent=1))
    runs = trainings(preset, best_rates(preset, found))
    first, others = ([each for each in some if each.name not in there] for some in (runs[:count], runs[count:]))
    return first or others


def _done(run: Run, corpus: from_scratch.Corpus, folder: Path) -> bool:
    """Train and record a run; False where another process has it or has had it."""
    own, record = folder / TRAININGS / run.name, folder / RECORDS / f"{run.name}.json"
    own.mkdir(parents=True, exist_ok=True)
    try:
        turn = Alone(own)
    except BlockingIOError:
        return False
    try:
        if record.exists():
            return False
        files.write_text(record, json.dumps(_trained(run, corpus, own)))
        for each in checkpoints.checkpoints(own):  # three times a model; nobody resumes what is finished
            shutil.rmtree(each)
        print(f"{run.name}: {json.loads(record.read_text())['bits_per_byte']} bits per byte", flush=True)
        return True
    finally:
        turn.end()


def _trained(run: Run, corpus: from_scratch.Corpus, own: Path) -> dict:
    """Train; the record. losses: nats a token of every step; unseen: [tokens, nats a token, bits per byte]."""
    options = {"seed": run.seed, "blocks": run.blocks, "learning_rate": run.rate, "folder": own}
    known, device = dataclasses.asdict(run) | {"threads": torch.get_num_threads()}, models.device_of()
    try:
        found, used = memory.call(from_scratch.train, run.arm, corpus, device=device, **options)
    except divergence.Diverged as error:
        return known | {"bits_per_byte": None, "diverged": str(error)}
    kind = torch.bfloat16 if corpus.preset.recipe.bfloat16 else torch.float32
    pairs = zip(found.losses, found.bits_per_byte, strict=True)
    measured = {
        "parameters": count.parameters(found.model),
        "flops_per_token": count.flops_per_token(found.model, corpus.preset.length // 2),
        "tokens": found.history.tokens,
        "seconds": found.history.seconds[-1],
        "tokens_per_second": found.tokens_per_second,
        "peak_flops": peaks.measure(device.type).of(kind),
        "peak_bytes": used.score.value,
        "losses": [round(loss, 5) for loss in found.history.losses],
        "unseen": [(tokens, nats, bits) for (tokens, nats), (_, bits) in pairs],
        "unseen_tokens": corpus.unseen[:, 1:].numel(),
    }
    return known | measured | {"loss": found.losses[-1][1], "bits_per_byte": found.bits_per_byte[-1][1]}


def disk_bytes(preset: presets.Preset, vocabulary: int) -> int:
    """What a whole study leaves on the disk: its models in float32, and its records."""
    runs = {*rates(preset), *trainings(preset, dict.fromkeys(preset.arms, preset.rates[0]))}
    sizes = {}
    for arm, depth in {(each.arm, each.blocks) for each in runs}:
        shape = preset.sizes | {"vocab_size": vocabulary, "num_hidden_layers": depth}
        config = architectures.configuration(arm, shape)
        sizes[arm, depth] = 4 * architectures.controls.weights(architectures.by_name(arm), config) + _ROOM
    return sum(sizes[each.arm, each.blocks] for each in runs)


def _same_study(folder: Path, preset: presets.Preset, corpus: from_scratch.Corpus) -> None:
    """Raise ValueError, naming what differs, where `folder` holds a study of another preset or text."""
    job = {name: str(value) for name, value in dataclasses.asdict(preset).items()}
    job |= {"rows": corpus.rows.identity, "unseen rows": files.data_hash(corpus.unseen)}
    note = folder / NOTE
    if not files.write_first(note, json.dumps(job, indent=1)):
        jobs.same_job(folder, json.loads(note.read_text()), job)


def _named(record: dict) -> dict:
    return {field.name: record[field.name] for field in dataclasses.fields(Run)}


def _listed(values) -> str:
    return ", ".join(f"{value:g}" for value in values)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.trainers.architecture_study", description="Run a study.")
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
