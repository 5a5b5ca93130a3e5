"""Speed and peak memory of systems that each run in a fresh process: models here, packed ones, and llama.cpp's.

    systems = {"original": System("transformers", "smollm2-135m-instruct"), "4 bits": System("packed", folder),
            "llama.cpp": System("llama.cpp", "model.gguf", python=path)}
    times, peaks, read = fresh.measure(systems, rounds=3)

Rounds are interleaved (A B A B); `speed.ratio` compares within them. The same random tokens go to all.
"""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lib import files, machine
from lib.metrics import speed_process
from lib.metrics.score import Score, from_values
from lib.metrics.speed import Measured


@dataclass(frozen=True)
class System:
    """A system to time: kind ("transformers", "packed", "llama.cpp"), model, interpreter (None: this one), options."""

    kind: str
    model: str
    python: str | None = None
    options: dict = field(default_factory=dict)


class Fresh(NamedTuple):
    """By system: times as `speed.measure` gives them, peak resident bytes, and the bytes that a decoding step reads."""

    times: Measured
    peaks: dict[str, Score]
    read: dict[str, int]


def measure(
    systems: dict[str, System],
    *,
    prompt: int = 128,
    new_tokens: int = 128,
    prefill: int = 512,
    rounds: int = 3,
    vocabulary: int = 49152,
    seed: int = 0,
    timeout: float = 600,
    tokens: list[int] | None = None,
) -> Fresh:
    """Times, peak memory and bytes read of every system over `rounds`, one process each.

    `ttft` and `tpot` are of `prompt` tokens and `new_tokens` greedy ones at batch 1, `prefill` of a prompt of `prefill`
    tokens; a short run warms up first. tokens: the `prefill` tokens of a text, None for random ones.
    Every process gets as many threads as this one would use.
    Raises ValueError for unknown kinds, RuntimeError with the end of its output for a system that fails.
    """
    for name, each in systems.items():
        if each.kind not in speed_process.KINDS:
            raise ValueError(
                f"system {name!r} is of kind {each.kind!r}; {files.choices(each.kind, speed_process.KINDS)}"
            )
    prefill = prefill if tokens is None else len(tokens)
    if min(prompt, prefill, rounds) < 1 or new_tokens < 2 or prompt > prefill:
        raise ValueError(
            f"prompt={prompt}, prefill={prefill}, new_tokens={new_tokens}, rounds={rounds}; all are 1 or more, "
            "new_tokens 2 or more, and prefill is no shorter than prompt."
        )
    draw = random.Random(seed)
    tokens = [draw.randrange(vocabulary) for _ in range(prefill)] if tokens is None else tokens
    common = {"tokens": tokens, "prompt": prompt, "new_tokens": new_tokens}
    samples = {name: {metric: [] for metric in ("ttft", "tpot", "prefill", "decode")} for name in systems}
    peaks, read = {name: [] for name in systems}, {}
    for _ in range(rounds):
        for name, each in systems.items():
            found = _once(name, each, common, timeout)
            peaks[name] += [found.pop("peak")]
            read[name] = found.pop("read")
            for metric, value in (found | {"decode": 1 / found["tpot"]}).items():
                samples[name][metric].append(value)
    told = {name: values for name, values in peaks.items() if None not in values}
    memory = {name: from_values(values, "bytes", higher_is_better=False) for name, values in told.items()}
    return Fresh(Measured(samples, dict.fromkeys(systems, 1)), memory, read)


def _once(name: str, each: System, common: dict, timeout: float) -> dict:
    threads = machine.threads()
    job = {"kind": each.kind, "model": str(each.model), "root": str(files.ROOT), "threads": threads, **each.options}
    command = [each.python or sys.executable, str(Path(speed_process.__file__)), json.dumps(job | common)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "THIMBLE_QUIET": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise RuntimeError(
            f"system {name!r} ended with {done.returncode}; 0 is expected; the end of its output:\n{said}"
        )
    return json.loads(done.stdout.splitlines()[-1])
