"""Predicted beside measured peaks of fine-tuning, each measured in a process of its own.

    python -m lib.finetuning.memory_check --publish

Before a measurement a tiny model is trained, so that what libraries load at their first use does not count.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
from typing import NamedTuple

import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from lib import files, jobs, machine, published
from lib.finetuning import memory as predicted
from lib.finetuning import ways
from lib.metrics import memory
from lib.quantizers import rtn
from lib.sources import models
from lib.trainers import loop, next_token

MODEL, STEPS, NAME = "smollm2-135m-instruct", 2, "footprint"


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
    tiny = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2))
    _train(tiny, Setting("lora", 1, 8, "float32"))

    def run() -> None:
        model, _ = models.load(name, dtype=given.dtype)
        if given.bits:
            rtn.quantize_(model, bits=given.bits, group_size=64)
        _train(model, given)

    return memory.call(run)[1].increase.value


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
    for given in settings:
        found, wanted = predict(given, config), _measured(given, name)
        rows.append({"setting": str(given), "predicted": found, "measured": wanted, "error": found / wanted - 1})
        numbers = f"predicted {found / 1e6:7,.0f} MB, measured {wanted / 1e6:7,.0f} MB, {found / wanted - 1:+.1%}"
        print(f"{given!s:36} {numbers}", flush=True)
    return rows


def _measured(given: Setting, name: str) -> float:
    """What `measure` says in a process of its own; kept in the cache, so that a check that was stopped goes on."""
    digest = hashlib.sha256(f"{given} {name} {jobs.code('trainers')}".encode()).hexdigest()[:16]
    path = files.cache() / "footprint" / f"{digest}.json"
    if not path.exists():
        command = [sys.executable, "-m", "lib.finetuning.memory_check", "--one", json.dumps([given, name])]
        environment = os.environ | {"THIMBLE_QUIET": "1", "OMP_NUM_THREADS": str(machine.threads())}
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
        "loaded; predicted without running it."
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
