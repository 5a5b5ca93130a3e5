"""Exporters that run in a runtime's own environment: a saved checkpoint goes there, the target's file comes back."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from torch import nn

from lib import files
from lib.export import compressed_tensors, plain, runtimes, stored_tensors

TIMEOUT = 3600  # seconds
_TAIL = 5  # lines of a failed program's output that the error shows


def check(runtime: str, what: str) -> None:
    """Raise FileNotFoundError, with the command that installs it, where the environment of `runtime` is missing."""
    if not runtimes.installed(runtime):
        raise FileNotFoundError(
            f"{runtime} is not installed; {what} is written by it, in an environment of its own; run: "
            f"{' && '.join(runtimes.command(runtime))}"
        )


def run(runtime: str, module: str, model: nn.Module, tokenizer, file: Path, **arguments) -> dict:
    """Let `module` write `file` of `model` in the environment of `runtime`; returns its report.

    Raises RuntimeError with the end of its output, TimeoutError after an hour.
    """
    with tempfile.TemporaryDirectory(prefix="thimble-export-") as scratch:
        saved, listed, report = (Path(scratch) / name for name in ("model", "arguments.json", "report.json"))
        save = compressed_tensors.save if stored_tensors.layers(model) else plain.save
        save(model, tokenizer, saved)
        asked = {"model": str(saved), "file": str(file), "report": str(report), **arguments}
        listed.write_text(json.dumps(asked))
        python = runtimes.place(runtime) / "bin" / "python"
        environment = {**os.environ, "PYTHONPATH": str(files.ROOT), "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(
                [str(python), "-m", module, str(listed)],
                env=environment, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"{runtime} had not written {file.name} after {TIMEOUT} s; export a smaller model."
            ) from None
        if done.returncode or not report.is_file():
            tail = "\n".join(done.stderr.strip().splitlines()[-_TAIL:])
            raise RuntimeError(f"{runtime} could not write {file.name} of {type(model).__name__}:\n{tail}")
        return json.loads(report.read_text())
