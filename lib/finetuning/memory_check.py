"""Predicted beside measured peaks of fine-tuning, each measured in a process of its own.

    python -m lib.finetuning.memory_check --publish

Before a measurement a few blocks are trained the same way, so that what libraries load at their first use, and the code
that they write for each shape, does not count. Models of few bits are read from a folder, as a user has them:
quantizing takes memory of its own. Measured is what the training holds: freed memory goes back to the system at once.
By default glibc keeps much of it for the next step, and a process takes more; how much more depends on the order in
which blocks come and go, and is not predicted.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lib import files, jobs, machine, published
from lib.export import compressed_tensors
from lib.finetuning import memory as predicted
from lib.finetuning import ways
from lib.metrics import memory
from lib.quantizers import rtn
from lib.sources import models
from lib.trainers import adapters, loop, next_token

MODEL, STEPS, NAME = "smollm2-135m-instruct", 2, "footprint"
GROUP_SIZE, RETURNED = 64, 128 << 10  # bytes of the blocks that go back to the system as they are freed


class Setting(NamedTuple):
    """A training whose peak is measured: batch rows of length tokens in one pass."""

    way: str
    batch: int
    length: int
    dtype: str = "bfloat16"
    bits: int | None = None
    recompute: bool = False

    def __str__(self):
        more = [f"{self.bits} bits"] if self.bits else [self.dtype]
        return ", ".join([self.way, f"{self.batch} x {self.length}", *more, *["recomputed"] * self.recompute])


SETTINGS = (
    Setting("full", 1, 512, "float32"), Setting("full", 4, 512), Setting("full", 4, 512, recompute=True),
    Setting("head", 2, 512), Setting("lora", 1, 512, "float32"), Setting("lora", 4, 512),
    Setting("lora", 4, 512, recompute=True), Setting("rslora", 8, 256), Setting("dora", 2, 512),
    Setting("qlora", 4, 512, bits=4), Setting("qlora", 1, 1024, bits=2), Setting("scales", 2, 512, bits=4),
)  # fmt: skip


def measure(given: Setting, name: str = MODEL) -> float:
    """Bytes at the peak of two steps, more than before the model was loaded; to be called in a fresh process."""
    _warm(given, name)
    with memory.peak(kept=RETURNED) as used:
        _train(_loaded(given, name), given)
    return used.increase.value


def _warm(given: Setting, name: str) -> None:
    """Train a few blocks with the same shapes: a kernel's code is written when a shape is first seen, and stays."""
    config = AutoConfig.from_pretrained(models.find(name)[0])
    few = predicted.shallow(config, adapters.LAST + 1, getattr(torch, given.dtype))
    if given.bits:
        rtn.quantize_(few, bits=given.bits, group_size=GROUP_SIZE)
    _train(few, given)


def _loaded(given: Setting, name: str):
    """The model alone: a tokenizer takes memory too, and no part in a training."""
    if given.bits:
        return _quantized(name, given.bits)
    return AutoModelForCausalLM.from_pretrained(models.find(name)[0], dtype=getattr(torch, given.dtype))


def _quantized(name: str, bits: int):
    """The model rounded to `bits`, from a folder of the cache, which is written first where it is missing."""
    place = files.cache() / "footprint" / f"{Path(name).name}-{bits}-bits"
    if not place.is_dir():
        model, tokenizer = models.load(name, dtype="bfloat16")
        rtn.quantize_(model, bits=bits, group_size=GROUP_SIZE)
        compressed_tensors.save(model, tokenizer, place)
    model, _ = compressed_tensors.load(place)
    model.tokenizer = None
    return model


def _train(model, given: Setting) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(model.config.vocab_size, (given.batch, given.length), generator=generator)
    with ways.trained_(model, given.way, recompute=given.recompute):
        sizes = {"batch": given.batch, "micro_batch": given.batch}
        loop.train_(model, rows, next_token.loss, steps=STEPS, learning_rate=1e-5, **sizes)


def predict(given: Setting, config) -> int:
    """The same, without running it."""
    options = {key: value for key, value in given._asdict().items() if key not in ("way", "dtype")}
    return predicted.predict(config, given.way, dtype=getattr(torch, given.dtype), **options).total


def check(settings=SETTINGS, name: str = MODEL) -> list[dict]:
    """A row for each setting: what it is, bytes predicted and measured, and the error as a share of the measured."""
    config, rows = AutoConfig.from_pretrained(models.find(name)[0]), []
    for bits in sorted({each.bits for each in settings if each.bits}):
        _quantized(name, bits)  # here, not in the measured process
    for given in settings:
        found, wanted = predict(given, config), _measured(given, name)
        rows.append({"setting": str(given), "predicted": found, "measured": wanted, "error": found / wanted - 1})
        numbers = f"predicted {found / 1e6:7,.0f} MB, measured {wanted / 1e6:7,.0f} MB, {found / wanted - 1:+.1%}"
        print(f"{given!s:36} {numbers}", flush=True)
    return rows


def _measured(given: Setting, name: str) -> float:
    """What `measure` says in a process of its own; kept in the cache, so that a check that was stopped goes on."""
    digest = hashlib.sha256(f"{given} {name} {RETURNED} {jobs.code('trainers')}".encode()).hexdigest()[:16]
    path = files.cache() / "footprint" / f"{digest}.json"
    if not path.exists():
        command = [sys.executable, "-m", "lib.finetuning.memory_check", "--one", json.dumps([given, name])]
        environment = os.environ | {"THIMBLE_QUIET": "1", "OMP_NUM_THREADS": str(machine.threads())}
        environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # large pages, for blocks are made anew all the time
        done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"{given} failed: {done.stderr.strip().splitlines()[-1:]}; run it with --one.")
        files.write_text(path, done.stdout.splitlines()[-1])
    return float(path.read_text())


def main() -> None:
    """Measure, print, and publish if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--publish", action="store_true", help="write data/published/footprint.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        given, name = json.loads(asked.one)
        print(measure(Setting(*given), name))
        return
    rows = check(name=asked.model)
    if asked.publish:
        path = published.folder() / f"{NAME}.json"
        files.write_text(path, json.dumps(document(rows, asked.model), indent=1, ensure_ascii=False) + "\n")


def document(rows: list[dict], name: str) -> dict:
    """What `published.load` reads: the checks, and the table of methods by the size of the model."""
    about = {"notebook": "14_adapters", "batch": "", "machine": machine.label()}
    about |= {"commit": machine.commit()["commit"] or "unknown"}
    about["protocol"] = (
        f"{name}, two steps of the loop in a process of its own, peak resident memory more than before the model was "
        "loaded, freed memory going back to the system at once; predicted without running it."
    )
    checks = [
        [row["setting"], *(f"{row[key] / 1e6:,.0f}" for key in ("predicted", "measured")), f"{row['error']:+.1%}"]
        for row in rows
    ]
    config = AutoConfig.from_pretrained(models.find(name)[0])
    methods = predicted.table(config, batch=1, length=512).rename(columns={"this model": "135M"})
    cells = [
        [key, *("" if math.isnan(gb) else f"{gb:,.1f}" for gb in row)]
        for key, row in zip(methods.index, methods.to_numpy())
    ]
    tables = {
        "check": {
            "title": "Predicted and measured peaks, MB",
            "columns": ["setting", "predicted", "measured", "error"],
            "rows": checks,
        },
        "methods": {
            "title": "GB at the peak, one row of 512 tokens, bfloat16",
            "columns": ["", *methods.columns],
            "rows": cells,
        },
    }
    return about | {"tables": tables, "notes": []}


if __name__ == "__main__":
    main()
