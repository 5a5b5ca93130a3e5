"""KL by file size: at each size of llama.cpp's own files, ours beside its quantizer's, both run by stock llama.cpp.

    THIMBLE_PEERS=/some/folder python -m lib.peers.gguf_sizes FOLDER --types Q2_0 Q4_0 Q4_K_M --windows 64 --publish

For each of llama.cpp's types its own quantizer writes a file, with an importance matrix of the calibration text: the
mean squares of what each layer receives, which the project's own methods see too. Ours has at most as many bytes:
`aimed_sizes` chooses the types, `aimed` the codes on their grids, and `aimed_scales` trains their steps. Then one
process of llama.cpp reads the same windows with the original and with all files; the table is paired window by window.

Q4_1 and Q5_1 take no part on either side: a model that comes off that grid is returned exactly by them, which says
nothing about a format. Finished files are kept, and a killed run goes on where it was. Notebook 45 shows what is
published.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from lib import files, jobs, machine, published, timing
from lib.checkpoints import fingerprint
from lib.export import certify, gguf, gguf_contents, gguf_metadata
from lib.metrics import divergence, intervals
from lib.models import blocks, capture
from lib.peers import gguf_script
from lib.quantizers import aimed, aimed_scales, aimed_sizes, calibrate, embedding
from lib.sources import models, texts

FILE_TYPES = {  # llama.cpp's numbers of files
    "Q2_0": 41, "Q2_K": 10, "Q3_K_M": 12, "Q4_0": 2, "IQ4_NL": 25, "Q4_K_M": 15, "Q5_0": 8, "Q6_K": 18, "Q8_0": 7,
}  # fmt: skip
NAME = "exports"  # of what is published
REFUSED = ("Q4_1", "Q5_1")
OURS = tuple(kind for kind in aimed_sizes.EVERY if kind not in REFUSED)
TIMEOUT = 6 * 3600  # seconds for llama.cpp


def run(
    folder: Path | str,
    *,
    model: str,
    types: list[str],
    text: str = "wikitext2",
    windows: int = 64,
    length: int = 512,
    calibration: int = 32,
    steps: int = 20,
    scale_steps: int = 32,
) -> list[dict]:
    """Write the files and measure them; returns one row a type of `FILE_TYPES`, also kept in `folder`/sizes.json.

    windows: of `length` tokens of the text's test part. calibration: windows of its validation part. steps: of
    SignRound. scale_steps: of training the steps end to end, 0 for none. Raises FileNotFoundError, with the commands
    that install it, where llama.cpp is missing; ValueError for other arguments of a folder that was begun.
    """
    python = certify.interpreter(gguf_script)
    if python is None:
        raise FileNotFoundError(
            f"llama.cpp is not in the folder that THIMBLE_PEERS names ({os.environ.get('THIMBLE_PEERS')}); "
            f"its files are read and written by it; run: {' && '.join(gguf_script.INSTALL)}"
        )
    for name in types:
        if name not in FILE_TYPES:
            raise ValueError(f"there is no type of file {name!r}; {files.choices(name, FILE_TYPES)}")
    folder, (original, tokenizer) = Path(folder), models.load(model)
    tokens = texts.tokens(texts.load(text, split="valid").windows(calibration, length), original)
    judged = texts.tokens(texts.load(text, split="test").windows(windows, length), original)
    job = {"model": fingerprint(original), "calibration": files.data_hash(tokens), "steps": str(steps)}
    job |= {"scale_steps": str(scale_steps), "method": "gguf_sizes"}
    folder.mkdir(parents=True, exist_ok=True)
    if not files.write_first(folder / "job.json", json.dumps(job)):
        jobs.same_job(folder, json.loads((folder / "job.json").read_text()), job)
    _theirs(folder, original, tokenizer, tokens, types, python)
    for name in types:
        size = (folder / f"{name}.gguf").stat().st_size
        _ours(folder, name, model, tokenizer, tokens, size, steps=steps, scale_steps=scale_steps)
    rows = _judge(folder, types, judged, python)
    files.write_text(folder / "sizes.json", json.dumps({"job": job, "length": length, "rows": rows}, indent=1))
    return rows


@torch.no_grad()
def importance(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """Mean squares of what each matrix receives on `tokens`, float32 [columns], by the name of its tensor in a file."""
    rename, found = gguf_metadata.names(model), {}
    hidden, path = (captured := capture.capture(model, tokens)).hidden, calibrate.path_of_blocks(model)
    for index, block in enumerate(calibrate.blocks(model)):
        parts = blocks.linears(block)
        hidden, seen = capture.record(block, parts, hidden, captured.calls[index])
        for name in parts:
            found[rename(f"{path}.{index}.{name}.weight")] = seen[name].flatten(0, -2).float().square().mean(0)
    part = blocks.embeddings(model) if blocks.tied(model) else blocks.head(model)
    found[rename(f"{blocks.path_of(model, part)}.weight")] = embedding.final_moment(model, tokens).diagonal() / 2
    return found


def _theirs(folder: Path, original, tokenizer, tokens: Tensor, types: list[str], python: Path) -> None:
    """The original as a file, and the files that llama.cpp's quantizer makes of it."""
    source = folder / "original" / gguf.FILE
    if not source.exists():
        gguf.export(original, tokenizer, source.parent)
    arrays = folder / "importance.npz"
    if not arrays.exists():
        found = {name: values.numpy() for name, values in importance(original, tokens).items()}
        with open(folder / "importance-new.npz", "wb") as file:
            numpy.savez(file, **found)
        (folder / "importance-new.npz").rename(arrays)
    missing = [name for name in types if not (folder / f"{name}.gguf").exists()]
    asked = [
        {"source": str(source), "target": str(folder / f"{name}.new"), "file_type": FILE_TYPES[name]}
        | {"importance": str(arrays)}
        for name in missing
    ]
    if asked:
        _llama_cpp(folder, python, {"quantize": asked})
    for name in missing:
        (folder / f"{name}.new").rename(folder / f"{name}.gguf")


def _ours(folder, name, model: str, tokenizer, tokens, size: int, *, steps: int, scale_steps: int) -> None:
    """Our file of at most `size` bytes, `folder`/NAME-ours/model.gguf."""
    place = folder / f"{name}-ours"
    if (place / gguf.FILE).exists():
        return
    aim, _ = models.load(model)
    errors = folder / "errors.json"
    if not errors.exists():
        files.write_text(errors, json.dumps(aimed_sizes.errors(aim, tokens, types=OURS)))
    plan = aimed_sizes.fit(aim, tokenizer, json.loads(errors.read_text()), megabytes=size / 1e6)
    state = folder / "states" / name
    with timing.stopwatch() as watch:
        reference = divergence.remember(aim, tokens)
        found = aimed.quantize_(aim, tokens, types=plan, steps=steps, state=state / "codes")
        tuned = [name for name in calibrate.layers(aim) if found[name].kind in aimed_scales.TYPES]
        if scale_steps and tuned:
            found = aimed_scales.tune_(aim, tokens, reference, found, steps=scale_steps, state=state / "scales")
    gguf.export(aim, tokenizer, place, aimed=found)
    files.write_text(folder / f"{name}-ours.json", json.dumps({"seconds": watch.seconds}))


def _judge(folder: Path, types: list[str], windows: Tensor, python: Path) -> list[dict]:
    listed = {f"{name}-theirs": str(folder / f"{name}.gguf") for name in types}
    listed |= {f"{name}-ours": str(folder / f"{name}-ours" / gguf.FILE) for name in types}
    numpy.save(folder / "windows.npy", windows.numpy())
    asked = {"reference": str(folder / "original" / gguf.FILE), "files": listed, "answer": str(folder)}
    said = _llama_cpp(folder, python, {"compare": asked | {"windows": str(folder / "windows.npy")}})
    rows = []
    for name in types:
        found = {side: numpy.load(folder / f"{name}-{side}.npy") for side in ("ours", "theirs")}
        row = {"type": name, "windows": len(windows), "version": said["version"]}
        for side, values in found.items():
            file = Path(listed[f"{name}-{side}"])
            row[side] = {"bytes": file.stat().st_size, "kl": _mean(values[0]), "agreement": _mean(values[1])}
            row[side]["types"] = gguf_contents.types(file)
        row["gain"] = _mean(found["theirs"][0] - found["ours"][0])
        rows.append(row)
    return rows


def _mean(values) -> dict:
    """Mean, standard error over windows, and 95 % interval."""
    found = intervals.mean(values)
    return {"mean": found.value, "stderr": found.stderr, "low": found.low, "high": found.high}


def _llama_cpp(folder: Path, python: Path, asked: dict) -> dict:
    """Let llama.cpp do what is asked, in a process of its own environment; returns its report."""
    listed, report = folder / "arguments.json", folder / "report.json"
    listed.write_text(json.dumps({**asked, "report": str(report.resolve())}))
    done = subprocess.run(
        [str(python), "-m", "lib.peers.gguf_script", str(listed.resolve())],
        env={**os.environ, "PYTHONPATH": str(files.ROOT)},
        capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise RuntimeError(f"llama.cpp ended with {done.returncode}; its last words:\n{last}")
    return json.loads(report.read_text())


def line(row: dict, show: Callable = "{:.4f}".format) -> str:
    """A row of the table, as text."""
    ours, theirs, gain = row["ours"], row["theirs"], row["gain"]
    sizes = f"{ours['bytes'] / 1e6:.1f} and {theirs['bytes'] / 1e6:.1f} MB"
    return (
        f"{row['type']}: ours {show(ours['kl']['mean'])}, llama.cpp's {show(theirs['kl']['mean'])} nats a token "
        f"({sizes}), paired gain {show(gain['mean'])} [{show(gain['low'])}, {show(gain['high'])}], "
        f"{ours['kl']['mean'] / theirs['kl']['mean']:.2f} of it, n={row['windows']}"
    )


def document(rows: list[dict], given: dict) -> dict:
    """What `published.load` reads: a row a type; given: the arguments of `run`."""
    text = f"{given['model']}, wikitext2, {rows[0]['windows']} windows of {given['length']} tokens, read by "
    text += f"{rows[0]['version']}; importance and codes from {given['calibration']} windows of the validation part; "
    text += f"{given['steps']} steps of SignRound, {given['scale_steps']} of the scales."
    columns = [
        "file",
        *(f"{what}, {side}" for what in ("MB", "KL") for side in ("llama.cpp's", "ours")),
        "of it",
        "gain",
    ]
    table = []
    for row in rows:
        sides = [row["theirs"], row["ours"]]
        values = [f"{side['bytes'] / 1e6:.1f}" for side in sides] + [_printed(side["kl"]) for side in sides]
        share = row["ours"]["kl"]["mean"] / row["theirs"]["kl"]["mean"]
        table.append([row["type"], *values, f"{share:.2f}", _printed(row["gain"])])
    about = {"notebook": "45_exports", "batch": "", "machine": machine.label(), "protocol": text}
    about |= {"commit": machine.commit()["commit"] or "unknown"}
    title = "KL from the original at equal size, nats a token"
    return about | {"tables": {"sizes": {"title": title, "columns": columns, "rows": table}}, "notes": []}


def _printed(found: dict) -> str:
    return f"{found['mean']:.4f} ± {found['stderr']:.4f}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.peers.gguf_sizes", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the files and the table")
    parser.add_argument("--model", default=models.packaged.NAME)
    parser.add_argument("--types", nargs="+", default=["Q2_0", "Q4_0", "Q4_K_M", "Q6_K"], metavar="TYPE")
    for name, default in (("windows", 64), ("length", 512), ("calibration", 32), ("steps", 20), ("scale-steps", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--publish", action="store_true", help=f"write data/published/{NAME}.json")
    given = vars(parser.parse_args(arguments))
    publish, folder = given.pop("publish"), given.pop("folder")
    try:
        for row in (rows := run(folder, **given)):
            print(line(row))
        if publish:
            said = json.dumps(document(rows, given), indent=1, ensure_ascii=False)
            files.write_text(published.folder() / f"{NAME}.json", said + "\n")
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
