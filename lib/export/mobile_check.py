"""The plan's prediction of memory, tried on this machine: stock llama.cpp answers under hard limits around it.

    THIMBLE_PEERS=/some/folder python -m lib.export.mobile_check FILE.gguf [FILE.gguf ...]

For each file and setting the plan predicts the peak. llama.cpp then answers in a process that may take a tenth more
than that, and in one that may take a tenth less (RLIMIT_DATA: private memory, which the weights are read into): a
prediction within a tenth is one where the first answers and the second is ended. What the runtime takes before it
loads anything is measured in the same way and stands in for `mobile.RUNTIME`, a phone's.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lib import files
from lib.export import certify, gguf_contents, mobile, reader_llama_cpp

WITHIN = 0.1
SETTINGS = ((512, 64, 512), (1024, 32, 256), (1500, 16, 128))  # tokens of prompt, answer, and read at once
_GRANULE = 256  # positions by which llama.cpp rounds the cache up
TIMEOUT = 900  # seconds for one answer


def check(files_: list[Path | str], *, settings=SETTINGS, within: float = WITHIN) -> list[dict]:
    """One row for each file and setting: what was predicted and taken, and whether it lived with more and less.

    A row: {"file", "prompt", "answer", "batch", "predicted", "taken", "resident": bytes, "lives", "killed": whether it
    answered with `within` more than predicted, and was ended with `within` less, "error": share, "seconds"}.
    Raises FileNotFoundError for files that are missing, and, with the command that installs it, for llama.cpp.
    """
    python = certify.interpreter(reader_llama_cpp)
    if python is None:
        raise FileNotFoundError(
            f"llama.cpp is not in the folder that THIMBLE_PEERS names ({os.environ.get('THIMBLE_PEERS')}); the plan is "
            f"tried with it; run: {' && '.join(reader_llama_cpp.INSTALL)}"
        )
    for file in map(Path, files_):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is no file; GGUF files are tried; write one with lib.export.gguf.")
    base, rows = _run(python, None, (1, 0, 1), None)["peak"], []
    for file in map(Path, files_):
        for setting in settings:
            predicted = predict(file, *setting, runtime=base)
            taken = _run(python, file, setting, None)
            row = dict(zip(("prompt", "answer", "batch"), setting)) | {"file": file.parent.name or file.name}
            row |= {"predicted": predicted, "taken": taken["peak"], "resident": taken["resident"]}
            row |= {"error": taken["peak"] / predicted - 1, "seconds": taken["seconds"]}
            row["lives"] = _run(python, file, setting, int(predicted * (1 + within))) is not None
            row["killed"] = _run(python, file, setting, int(predicted * (1 - within))) is None
            rows.append(row)
    return rows


def predict(file: Path, prompt: int, answer: int, batch: int, *, runtime: int) -> int:
    """Bytes that the plan predicts for an answer by `file`, with what the runtime takes by itself."""
    config = described(file)
    length = -(-(prompt + answer) // _GRANULE) * _GRANULE
    tensors = sum(each.n_bytes for each in gguf_contents.entries(file))
    found = mobile.plan(
        config,
        mobile.Phone(10**12, 1.0, None, "this machine"),
        weights=int(tensors),
        prompt=prompt,
        answer=length - prompt,
        batch=batch,
    )
    return dataclasses.replace(found, runtime=found.runtime - mobile.RUNTIME + runtime + reserved(file)).peak


def reserved(file: Path) -> int:
    """Bytes that llama.cpp reserves for the description of its graph, most of which it never touches.

    ggml_backend_sched_new: eight nodes for each tensor, each a split of 30 inputs, twice, of 336 bytes.
    """
    return max(1024, 8 * len(gguf_contents.entries(file))) * 30 * 2 * 336


def described(file: Path):
    """The configuration that the plan needs, from the metadata of a GGUF file of a Llama or a model built like it."""
    from transformers import LlamaConfig  # slow to load

    said = gguf_contents.fields(file)
    kind = said["general.architecture"]
    get = {key.removeprefix(f"{kind}."): value for key, value in said.items()}
    tied = "output.weight" not in [each.name for each in gguf_contents.entries(file)]
    return LlamaConfig(
        hidden_size=get["embedding_length"],
        intermediate_size=get["feed_forward_length"],
        num_hidden_layers=get["block_count"],
        num_attention_heads=get["attention.head_count"],
        num_key_value_heads=get["attention.head_count_kv"],
        head_dim=get.get("attention.key_length"),
        vocab_size=get["vocab_size"],
        tie_word_embeddings=tied,
    )


def _run(python: Path, file: Path | None, setting: tuple[int, int, int], limit: int | None) -> dict | None:
    """The report of an answer; None where the limit ended it. RuntimeError where it ended without one."""
    prompt, answer, batch = setting
    with tempfile.TemporaryDirectory(prefix="thimble-phone-") as scratch:
        listed, report = Path(scratch) / "arguments.json", Path(scratch) / "report.json"
        asked = {"file": file and str(file.resolve()), "prompt": [1] * prompt, "answer": answer, "batch": batch}
        asked |= {"context": prompt + answer, "limit": limit, "report": str(report)}
        listed.write_text(json.dumps(asked))
        done = subprocess.run(
            [str(python), "-m", "lib.export.phone_script", str(listed)],
            env={**os.environ, "PYTHONPATH": str(files.ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False,
        )  # fmt: skip
        if done.returncode == 0 and report.is_file():
            return json.loads(report.read_text())
    if limit is not None:
        return None
    last = "\n".join(done.stderr.strip().splitlines()[-5:])
    raise RuntimeError(f"llama.cpp ended with {done.returncode} without a limit; its last words:\n{last}")


def line(row: dict) -> str:
    """A row as text."""
    ends = f"{'answers' if row['lives'] else 'DIES'} with 10 % more, {'killed' if row['killed'] else 'LIVES'} with less"
    return (
        f"{row['file']}, {row['prompt']} + {row['answer']} tokens, {row['batch']} at once: predicted "
        f"{row['predicted'] / 1e6:.0f} MB, taken {row['taken'] / 1e6:.0f} ({row['error']:+.1%}); {ends}"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 where every prediction is within a tenth."""
    parser = argparse.ArgumentParser(prog="python -m lib.export.mobile_check", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="GGUF files")
    parser.add_argument("--json", type=Path, help="where the rows are written")
    given = parser.parse_args(arguments)
    try:
        rows = check(given.files)
    except (FileNotFoundError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(map(line, rows)))
    if given.json:
        files.write_text(given.json, json.dumps(rows, indent=1))
    return 0 if all(row["lives"] and row["killed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
