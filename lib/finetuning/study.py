"""The study of orders: tune then compress, compress then tune, or tune with the compressed weights in the loop.

    python -m lib.finetuning.study evening --hours 0.15

Every training has the same minutes of processor time: how many steps these are is measured first, for each way, and
kept, so that a study that was killed goes on where it was and ends in the same bytes. Each way gets the learning rate
that did best on rows which nothing else is measured on. A record is one model: its loss on unseen answers, its
divergence from the original on plain text, the questions it answers right, its bytes. Seeds are paired: seed k has the
same rows in the same order in every arm.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from lib import files, jobs, timing
from lib.finetuning import answer_loss, orders, presets
from lib.finetuning.orders import Material, Training
from lib.finetuning.presets import Preset
from lib.metrics import divergence, seeds
from lib.models.reference import Reference

NOTE, PACE, RATES, RECORDS = "study.json", "pace.json", "rates.json", "records"


def place(preset: str) -> Path:
    """The folder of a preset's study in the cache."""
    return files.cache() / "tuning" / preset


def run(preset: str | Preset, folder: Path | str, *, hours: float | None = None) -> list[dict]:
    """Train, compress and measure all that is missing of a study in `folder`; returns `records`.

    hours: after which nothing is begun. Raises ValueError for a folder with another study and for fewer seeds than an
    interval takes, and what reading data and models raises.
    """
    preset = presets.by_name(preset) if isinstance(preset, str) else preset
    seeds.check(list(preset.seeds))
    folder, ends = Path(folder), None if hours is None else time.monotonic() + 3600 * hours
    material = Material(preset, folder)
    _same_study(folder, preset, material)
    for _ in _work(material, folder):
        if ends is not None and time.monotonic() > ends:
            break
    return records(folder)


def records(folder: Path | str) -> list[dict]:
    """What is finished of the study in `folder`, by name."""
    return [json.loads(path.read_text()) for path in sorted((Path(folder) / RECORDS).glob("*.json"))]


def trainings(preset: Preset) -> list[tuple[str, int]]:
    """(Way, bits) of every kind of training."""
    return [("lora", 16), *((way, bits) for bits in preset.bits for way in ("scales", "qlora"))]


def models_of(preset: Preset) -> list[tuple[str, int, int]]:
    """(Arm, bits, seed) of every record, those without a training once."""
    found = [("original", 16, 0), *(("tuned", 16, seed) for seed in preset.seeds)]
    for bits in preset.bits:
        found += [("compressed", bits, 0), *((arm, bits, seed) for seed in preset.seeds for arm in orders.TUNED)]
    return found


def _work(material: Material, folder: Path) -> Iterator[None]:
    """Do the next thing that is missing, and yield after each."""
    preset = material.preset
    for bits in preset.bits:
        if not (folder / "models" / f"gptq-{bits}").is_dir():
            material.compressed(bits)
            yield
    paces = _kept(folder / PACE)
    for way, bits in trainings(preset):
        if f"{way}-{bits}" not in paces:
            paces[f"{way}-{bits}"] = orders.pace(material, way, bits)
            files.write_text(folder / PACE, json.dumps(paces, indent=1))
            yield
    steps = {name: max(2, int(60 * preset.minutes / seconds)) for name, seconds in paces.items()}
    reference = divergence.remember(material.original(), material.windows)
    for arm, bits, seed in models_of(preset):
        path = folder / RECORDS / f"{arm.replace(', ', '-')}-{bits}-seed-{seed}.json"
        if not path.exists():
            yield from _try_rates(material, folder, steps, bits)
            files.write_text(path, json.dumps(_record(material, folder, arm, bits, seed, steps, reference)))
            print(f"{path.stem}: {json.loads(path.read_text())['bits_per_byte']:.4f} bits per byte", flush=True)
            yield


def _try_rates(material: Material, folder: Path, steps: dict[str, int], wanted: int) -> Iterator[None]:
    """Measure the trainings of the first seed at `wanted` bits with every rate, on rows that only choose rates."""
    preset, tried = material.preset, _kept(folder / RATES)
    for way, bits in trainings(preset):
        # a single rate needs no choice
        for rate in preset.rates if bits in (16, wanted) and len(preset.rates) > 1 else ():
            each = Training(way, bits, preset.seeds[0], rate)
            if each.name in tried:
                continue
            learned = orders.train(material, each, steps[f"{way}-{bits}"])
            arm = {"lora": "tuned", "scales": "scales", "qlora": "adapters, beside"}[way]
            model = orders.made(material, arm, bits, learned)
            tried[each.name] = answer_loss.measure(model, material.valid, material.tokenizer).per_byte.value
            files.write_text(folder / RATES, json.dumps(tried, indent=1))
            yield


def best_rate(preset: Preset, folder: Path | str, way: str, bits: int) -> float:
    """The factor of the usual learning rate with the lowest loss on the rows that choose it."""
    if len(preset.rates) == 1:
        return preset.rates[0]
    tried = _kept(Path(folder) / RATES)
    return min(preset.rates, key=lambda rate: tried[Training(way, bits, preset.seeds[0], rate).name])


def _record(
    material: Material, folder: Path, arm: str, bits: int, seed: int, steps: dict, reference: Reference
) -> dict:
    preset, known, learned = material.preset, {"arm": arm, "bits": bits, "seed": seed}, None
    if arm not in ("original", "compressed"):
        way, trained_bits = orders.TUNED.get(arm, "lora"), bits
        if way == "lora":
            trained_bits = 16
        rate = best_rate(preset, folder, way, trained_bits)
        count = steps[f"{way}-{trained_bits}"]
        learned = orders.train(material, Training(way, trained_bits, seed, rate), count)
        known |= {"way": way, "rate": rate, "steps": count}
    began = timing.worked()
    model = orders.made(material, arm, bits, learned)
    seconds = timing.worked() - began
    answers = answer_loss.measure(model, material.test, material.tokenizer)
    forgotten = divergence.measure(model, reference, material.windows)["kl_divergence"]
    return known | {
        "bits_per_byte": answers.per_byte.value, "stderr": answers.per_byte.stderr,
        "answer_bits": answers.bits.tolist(), "answer_bytes": answers.bytes.tolist(),
        "kl": forgotten.value, "kl_stderr": forgotten.stderr, "tasks": material.right(model),
        "bytes": orders.stored_bytes(model), "making_seconds": seconds, "threads": torch.get_num_threads(),
    }  # fmt: skip


def _same_study(folder: Path, preset: Preset, material: Material) -> None:
    """Raise ValueError, naming what differs, where `folder` holds a study of another preset or data."""
    job = {name: str(value) for name, value in dataclasses.asdict(preset).items()}
    job["rows"] = files.data_hash(material.calibration)
    job["unseen rows"] = files.data_hash(torch.cat([row["input_ids"] for row in material.test]))
    files.check_writable(folder / NOTE, 64 << 20)
    jobs.same_study(folder / NOTE, job, preset.seeds)


def _kept(path: Path) -> dict:
    with contextlib.suppress(FileNotFoundError):
        return json.loads(path.read_text())
    return {}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.finetuning.study", description="Run a study.")
    parser.add_argument("preset", help=f"one of {', '.join(presets.PRESETS)}")
    parser.add_argument("--folder", type=Path, help="where its records and models are kept")
    parser.add_argument("--hours", type=float, help="after which nothing is begun")
    given = parser.parse_args(arguments)
    folder = given.folder or place(given.preset)
    try:
        found = run(given.preset, folder, hours=given.hours)
        missing = len(models_of(presets.by_name(given.preset))) - len(found)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(found)} models are recorded in {folder}, {missing} are missing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
