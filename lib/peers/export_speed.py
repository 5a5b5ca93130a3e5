"""Speed and memory of every runtime on exports of the same checkpoints, beside our engine, in one interleaved run.

    python -m lib.peers.export_speed CHECKPOINT... --folder data/exports [--original ORIGINAL] \\
        [--formats gguf onnx openvino executorch mlx] [--prompt 128] [--answer 64] [--rounds 3] [--threads 1]

Each checkpoint (of 4, of 3 bits, say) is exported once in each format. Then each round starts every runtime once in a
fresh process (A B C A B C): seconds until it is loaded, tokens a second of reading the prompt and of answering, peak
memory. A measurement that is done is kept; the same command goes on where a killed one ended. What a format can't hold,
and what is not installed, is said and left out. KL is that of the file in its runtime from the original (by default
from the checkpoint itself) on the texts of certificates. `python -m lib.report.exports data/exports` draws the figure.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from lib import checkpoints, files, machine
from lib.export import certify, formats, saved_models
from lib.folders import manifest
from lib.peers import serving_speed

EXPORTERS = {name: f"lib.export.{name}" for name in ("gguf", "onnx", "openvino", "executorch", "mlx")}
TIMEOUT = 1800  # seconds of one measurement
_OURS = "checkpoint"  # the format of which nothing is exported: our engine reads the checkpoint itself


class Arm(NamedTuple):
    """A runtime in one of its modes on one file of a checkpoint: its reader's module, and the KL from the original."""

    checkpoint: str
    name: str
    module: str
    mode: str
    file: Path
    kl: float | None
    nbytes: int


def prepared(checkpoint: Path, folder: Path, wanted: list[str], original: Path) -> list[Arm]:
    """Export, certify, and list what can be measured."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    model, tokenizer = saved_models.load(checkpoint)
    for name in wanted:
        place = checkpoint if name == _OURS else folder / name
        if name != _OURS and not (place / manifest.NAME).is_file():
            try:
                importlib.import_module(EXPORTERS[name]).export(model, tokenizer, place)
            except (ValueError, FileNotFoundError, RuntimeError) as error:
                print(f"left out: {name}. {error}", flush=True)
                continue
        found += _arms(name, place, folder, checkpoint.name, original)
    return found


def _arms(name: str, place: Path, folder: Path, checkpoint: str, original: Path) -> list[Arm]:
    """The runtimes at hand that read an export, with what its certificate says of them."""
    kind, said = formats.find(place), folder / f"certificate of {name}.json"
    if not said.is_file():
        files.write_text(said, json.dumps(certify.examined(place, original), indent=1, ensure_ascii=False))
    certificate, arms = json.loads(said.read_text()), []
    nbytes = sum(each["bytes"] for each in certificate["files"].values())
    for backend, module in kind.readers.items():
        answer = certificate["backends"][backend]
        if "version" not in answer:
            print(f"left out: {backend}. {answer.get('skipped') or answer.get('failed')}", flush=True)
            continue
        for mode in importlib.import_module(module).MODES:
            kl, file = answer[mode]["kl"], place / kind.file
            arms.append(Arm(checkpoint, f"{backend}, {mode}", module, mode, file, kl, nbytes))
    return arms


def measure(arm: Arm, prompt: list[int], answer: int, threads: int) -> dict:
    """One measurement in a fresh process; RuntimeError with the end of what it said."""
    reader = importlib.import_module(arm.module)
    with tempfile.TemporaryDirectory(prefix="thimble-speed-") as scratch:
        listed = Path(scratch) / "arguments.json"
        asked = {"file": str(arm.file.resolve()), "texts": [], "prompts": [prompt], "new_tokens": answer}
        listed.write_text(json.dumps({**asked, "timed": arm.mode, "threads": threads, "answer": scratch}))
        environment = {"PYTHONPATH": str(files.ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            [str(certify.interpreter(reader)), "-m", arm.module, str(listed)],
            env={**os.environ, **environment}, capture_output=True, text=True, errors="replace", timeout=TIMEOUT,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{arm.name} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        found = json.loads((Path(scratch) / "answer.json").read_text())
    return {
        "load_seconds": found["load"],
        "prefill": len(prompt) / found["prefill"],
        "decode": 1 / statistics.median(found["decode"]),
        "peak_bytes": found["peak_bytes"],
    }


def rounds(arms: list[Arm], folder: Path, prompt: list[int], *, answer: int, count: int, threads: int) -> None:
    """Measure what is not in `folder` yet, in turns; a runtime that fails is told, and the others go on."""
    for turn in range(count):
        for arm in arms:
            place = _place(folder, arm, turn)
            if place.exists():
                continue
            try:
                files.write_text(place, json.dumps(measure(arm, prompt, answer, threads)))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"{arm.name}, round {turn + 1}: {error}", file=sys.stderr, flush=True)


def table(arms: list[Arm], folder: Path) -> list[dict]:
    """A row an arm: medians over its rounds, with the least and the most, beside KL and bytes."""
    rows = []
    for arm in arms:
        kept = [json.loads(path.read_text()) for path in sorted(folder.glob(_place(folder, arm, "*").name))]
        if kept:
            spread = {key: sorted(each[key] for each in kept) for key in kept[0]}
            middle = {key: statistics.median(values) for key, values in spread.items()}
            ends = {f"{key} from, to": (values[0], values[-1]) for key, values in spread.items()}
            about = {"checkpoint": arm.checkpoint, "runtime": arm.name, "kl": arm.kl, "bytes": arm.nbytes}
            rows.append({**about, "rounds": len(kept), **middle, **ends})
    return rows


def _place(folder: Path, arm: Arm, turn) -> Path:
    plain = "".join(each if each.isalnum() else "_" for each in f"{arm.checkpoint}-{arm.name}")
    return folder / f"round-{plain}-{turn}.json"


def main(arguments: list[str] | None = None) -> int:
    """Export, certify, measure, and print a line a runtime; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.peers.export_speed", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="saved models, packed or plain")
    parser.add_argument("--original", type=Path, help="the model from which KL is measured")
    parser.add_argument(
        "--folder", type=Path, required=True, help="where exports, measurements and the figure are kept"
    )
    parser.add_argument("--formats", nargs="+", choices=list(EXPORTERS), default=list(EXPORTERS))
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--answer", type=int, default=64, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    hashes = {each.name: [manifest.sha256(path) for path in checkpoints.weights(each)] for each in given.checkpoints}
    setting = {"checkpoints": hashes, "prompt": given.prompt, "answer": given.answer, "threads": given.threads}
    try:
        serving_speed.check(given.folder, setting)
    except ValueError as error:
        print(f"export_speed: {error}", file=sys.stderr)
        return 2
    prompt = [37 + place % 200 for place in range(given.prompt)]  # any tokens do: none is looked up
    arms = [
        arm
        for each in given.checkpoints
        for arm in prepared(each, given.folder / each.name, [*given.formats, _OURS], given.original or each)
    ]
    how = {"answer": given.answer, "count": given.rounds, "threads": given.threads}
    rounds(arms, given.folder, prompt, **how)
    rows = table(arms, given.folder)
    said = {
        "machine": machine.describe()["cpu"],
        "threads": given.threads,
        **{key: setting[key] for key in ("prompt", "answer")},
    }
    files.write_text(given.folder / "speed.json", json.dumps({**said, "rows": rows}, indent=1))
    print(*map(_line, rows), sep="\n")
    return 0 if rows else 1


def _line(row: dict) -> str:
    """A row of `table` in words."""
    speeds = f"prefill {row['prefill']:.0f} and decode {row['decode']:.1f} tokens/s"
    sizes = f"{row['bytes'] / 1e6:.1f} MB, peak {row['peak_bytes'] / 1e6:.0f} MB"
    about = f"KL {row['kl']:.4f}, loaded in {row['load_seconds']:.2f} s"
    return f"{row['checkpoint']}, {row['runtime']}: {about}, {speeds}, {sizes}"


if __name__ == "__main__":
    sys.exit(main())
