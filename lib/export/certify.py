"""Certificates: what an exported file computes in the runtimes that will read it, beside the model that it came from.

    python -m lib.export.certify FOLDER REFERENCE      # exit status 1 where something is wrong

`certificate.json` in the folder holds, for each backend at hand, each in a fresh process of its own environment:
largest and mean difference of logits, KL, agreement of the first choice and of greedy answers on fixed prompts, where
they part first and by how little the reference chose otherwise; the weights one by one, the tokens of the prompts,
bytes, hashes and versions. `faults` lists what is wrong, in words, `remarks` what a backend's bytes and seconds say of
the path that it took (`fallback`). What is not installed is named with the command that
installs it. The same command checks a certificate again.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import torch
from torch import nn

from lib import checkpoints, files, machine
from lib.export import agreement, fallback, formats, saved_models
from lib.folders import manifest

NAME = "certificate.json"
BACKENDS = {name: reader for each in formats.FORMATS.values() for name, reader in each.readers.items()}
PROMPTS = (
    "The capital of France is",
    "the other day, 12 of the 128 birds\n\n  flew away;",
    "def add(a, b):\n    return a + b\n",
    "Éva's naïve café — 一二三 😀",
)
NEW_TOKENS = 12
TIMEOUT = 3600  # seconds for one backend
_ROUNDING = 1e-3  # share of a weight: twice 2**-11, by which half precision rounds a scale


def certify(folder: Path | str, reference, *, backends=None, timeout: float = TIMEOUT) -> Path:
    """Write `folder`/certificate.json about the export in `folder`; returns its path.

    reference: the checkpoint that was exported, packed or plain, as a folder; or the model itself, with its tokenizer
    as `model.tokenizer`. backends: names of runtimes that read this format (`formats`), all by default; those that are
    not installed are listed with the command that installs them. Raises FileNotFoundError for a folder without an
    export, ValueError for unknown backends.
    """
    folder = Path(folder)
    _format(folder, backends)
    files.check_writable(folder / NAME)
    changed = _changed(folder)
    certificate = examined(folder, reference, backends=backends, timeout=timeout)
    files.write_text(folder / NAME, json.dumps(certificate, indent=1, ensure_ascii=False))
    if not changed:
        manifest.seal(folder)
    return folder / NAME


def examined(folder: Path | str, reference, *, backends=None, timeout: float = TIMEOUT) -> dict:
    """The content of the certificate of `certify`, of an export in which nothing is to be written."""
    folder = Path(folder)
    kind, readers = _format(folder, backends)
    contents, file = formats.contents(kind), folder / kind.file
    model, tokenizer, origin = _reference(reference)
    asked = {
        "file": str(file.resolve()),
        "texts": list(PROMPTS),
        "prompts": [list(tokenizer(text).input_ids) for text in PROMPTS],
        "new_tokens": NEW_TOKENS,
    }
    wanted = _own(model, asked["prompts"])
    certificate = {
        "reference": origin,
        "file": {"name": kind.file, "bytes": file.stat().st_size, "sha256": manifest.sha256(file)},
        "files": {name: _hashed(folder / name) for name in manifest.names(folder) if name != NAME},
        "types": contents.types(file),
        "weights": contents.compare(file, model),
        "backends": {name: _backend(name, reader, asked, wanted, timeout) for name, reader in readers.items()},
        "commit": machine.commit()["commit"],
    }
    certificate["faults"] = _faults(certificate, readers, _changed(folder))
    held = sum(said["bytes"] for name, said in certificate["files"].items() if name.startswith(file.stem))
    certificate["remarks"] = fallback.remarks(certificate["backends"], file=held, dense=fallback.dense(model))
    return certificate


def _format(folder: Path, backends) -> tuple[formats.Format, dict[str, str]]:
    """The format of an export and the readers that are asked, by their names."""
    for name in backends or ():
        if name not in BACKENDS:
            raise ValueError(f"there is no backend {name!r}; {files.choices(name, BACKENDS)}")
    kind = formats.find(folder)
    return kind, formats.chosen(kind, backends)


def _changed(folder: Path) -> list[str]:
    """What lies in the folder that its manifest does not name, or has another hash for."""
    return [name for name in manifest.foreign(folder) if not name.startswith(NAME)]


def _reference(reference) -> tuple[nn.Module, object, dict]:
    """(model in float32, tokenizer, where it comes from)."""
    if isinstance(reference, nn.Module):
        model, origin = copy.deepcopy(reference).float().eval(), {"model": type(reference).__name__}
        return model, reference.tokenizer, origin
    model, tokenizer = saved_models.load(reference)
    hashes = {path.name: manifest.sha256(path) for path in checkpoints.weights(reference)}
    return model.float().eval(), tokenizer, {"folder": Path(reference).name, "sha256": hashes}


@torch.no_grad()
def _own(model: nn.Module, prompts: list[list[int]]) -> dict:
    """The reference's logits, greedy answers, and the gaps between its first and second choice."""

    def forward(ids):
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()

    found = {"logits": [forward(ids).numpy() for ids in prompts], "greedy": [], "gaps": []}
    for prompt in prompts:
        ids, gaps = list(prompt), []
        for _ in range(NEW_TOKENS):
            best = forward(ids)[-1].topk(2)
            ids.append(int(best.indices[0]))
            gaps.append(float(best.values[0] - best.values[1]))
        found["greedy"].append(ids[len(prompt) :])
        found["gaps"].append(gaps)
    return found


def _hashed(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": manifest.sha256(path)}


def _backend(name: str, module: str, asked: dict, wanted: dict, timeout: float) -> dict:
    """The part of a certificate on one backend, which runs in a process of its own."""
    reader = formats.reader(module)
    python = interpreter(reader)
    if python is None:
        return {"skipped": f"it is not installed; run: {' && '.join(reader.INSTALL)}"}
    if hasattr(reader, "unread") and (what := reader.unread(asked["file"])):
        return {"skipped": f"{name} leaves out {what}"}
    with tempfile.TemporaryDirectory(prefix="thimble-certify-") as scratch:
        listed = Path(scratch) / "arguments.json"
        listed.write_text(json.dumps({**asked, "answer": scratch}))
        try:
            done = subprocess.run(
                [str(python), "-m", module, str(listed)],
                env={**os.environ, "PYTHONPATH": str(files.ROOT), "HF_HUB_OFFLINE": "1"},
                capture_output=True, text=True, errors="replace", timeout=timeout, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": f"it had not answered after {timeout:g} s; give a larger timeout"}
        if done.returncode or not (Path(scratch) / "answer.json").is_file():
            return {"failed": "\n".join(done.stderr.strip().splitlines()[-5:]) or f"ended with {done.returncode}"}
        answer = json.loads((Path(scratch) / "answer.json").read_text())
        result = {key: answer[key] for key in ("version", "peak_bytes", "base_bytes")}
        result["same_tokens"] = [ours == theirs for ours, theirs in zip(asked["prompts"], answer["tokens"])]
        for mode, said in answer["modes"].items():
            read = [numpy.load(Path(scratch) / f"{mode}-{n}.npy", allow_pickle=False) for n in range(len(PROMPTS))]
            if any(ours.shape != theirs.shape for ours, theirs in zip(wanted["logits"], read)):
                return {"failed": f"its logits are {read[0].shape}, the reference's {wanted['logits'][0].shape}"}
            # of a reader that gives log-probabilities, they are compared with the reference's
            told = agreement.normalized(wanted["logits"]) if hasattr(reader, "NORMALIZED") else wanted["logits"]
            result[mode] = agreement.logits(read, told)
            result[mode]["greedy"] = agreement.greedy(said["greedy"], wanted["greedy"], wanted["gaps"])
            result[mode]["seconds"] = said["seconds"]
    return result


def interpreter(reader) -> Path | None:
    """The Python that runs the module `reader`; None where it is not installed."""
    if not hasattr(reader, "FOLDER"):
        return Path(sys.executable)
    root = os.environ.get("THIMBLE_PEERS")
    path = Path(root).expanduser() / reader.FOLDER / "bin" / "python" if root else None
    return path if path is not None and path.is_file() else None


def _faults(certificate: dict, readers: dict[str, str], changed: list[str]) -> list[str]:
    """What is wrong, in words; nothing for an export that computes what its model does."""
    weights, found = certificate["weights"], [f"the folder holds {name}" for name in changed]
    if weights["largest"] > _ROUNDING:
        found.append(f"weights differ by up to {weights['largest']:.1%} of the largest, most in {weights['where']}")
    found += [f"the tensor {name} is missing or of another shape" for name in weights["missing"]]
    found += [f"the tensor {name} is none of the model's" for name in weights["left_over"]]
    for name, said in certificate["backends"].items():
        reader = formats.reader(readers[name])
        if "failed" in said:
            found.append(f"{name} could not read it: {said['failed'].splitlines()[-1]}")
        if "version" not in said:
            continue
        if not all(said["same_tokens"]):
            found.append(f"{name} cuts {said['same_tokens'].count(False)} of {len(PROMPTS)} prompts into other tokens")
        for mode in reader.MODES:
            limit = getattr(reader, "LIMITS", {}).get(mode, reader.LIMIT)
            if not said[mode]["kl"] <= limit:
                found.append(f"{name} ({mode}): KL {said[mode]['kl']:.3g}, {limit:g} is allowed")
    if not any("version" in said for said in certificate["backends"].values()):
        found.append("no backend has read it")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 where nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m lib.export.certify", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="the export")
    parser.add_argument("reference", help="the checkpoint that was exported")
    parser.add_argument("--backend", action="append", choices=list(BACKENDS), help="only this one; may be repeated")
    given = parser.parse_args(arguments)
    path = certify(given.folder, given.reference, backends=given.backend)
    said = json.loads(path.read_text())
    faults = said["faults"]
    print("\n".join(faults) or "no fault found", f"({path})")
    print("\n".join(said["remarks"]), end="\n" if said["remarks"] else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
