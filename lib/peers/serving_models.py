"""What servers are compared with, out of one checkpoint: each kind gets the 4 bits that it reads.

    thimble, vllm    GPTQ, groups of 64, compressed-tensors; the embedding in 16 bits (our server rounds it to 8)
    llama.cpp        Q4_0: groups of 32 around zero, rounded to nearest; embedding and head in Q8_0
    transformers     the checkpoint as it is: its server has no fewer bits on a CPU

Beside each stands its divergence from the checkpoint: a server is faster only at an equal or a lower one.
"""

import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from lib import files
from lib.export import compressed_tensors, gguf
from lib.metrics import divergence
from lib.quantizers import embedding, gptq, rtn
from lib.sources import models, texts

WINDOWS = 16  # of 512 tokens: for GPTQ, and others for the divergence
NATS = "nats.json"


def made(kind: str, source: str, folder: Path) -> Path:
    """The folder or the file that a server of `kind` takes, written under `folder` where it is not there yet."""
    if kind not in WAYS:
        raise ValueError(f"there is no artifact for a server {kind!r}; {files.choices(kind, WAYS)}")
    if WAYS[kind] is None:
        return models.find(source)[0]
    write, name = WAYS[kind]
    target = folder / name
    if not target.exists() or not (target / NATS).is_file():
        model, tokenizer = models.load(source)
        test = texts.load("packaged", split="test").windows(WINDOWS, 512)
        reference = divergence.remember(model, test)
        write(model, tokenizer, target)
        found = divergence.quality(model, reference, test)["kl_divergence"]
        files.write_text(target / NATS, json.dumps({"nats": found.value, "stderr": found.stderr}))
    return target / gguf.FILE if kind == "llama.cpp" else target


def nats(path: Path) -> float | None:
    """Divergence from the checkpoint of what `made` wrote; None of anything else, the checkpoint itself too."""
    found = (path if path.is_dir() else path.parent) / NATS
    return json.loads(found.read_text())["nats"] if found.is_file() else None


def _four_bits(model: nn.Module, tokenizer, target: Path) -> None:
    calibration = texts.load("packaged", split="valid").windows(WINDOWS, 512)
    gptq.quantize_(model, calibration, bits=4, group_size=64)
    compressed_tensors.save(model, tokenizer, target)
    embedding.quantize_(model, bits=8, group_size=64)  # as our server runs it; the folder keeps 16 bits


def _blocks_of_32(model: nn.Module, tokenizer, target: Path) -> None:
    rtn.quantize_(model, bits=4, group_size=32, symmetric=True)
    embedding.quantize_(model, bits=8, group_size=32, symmetric=True)
    gguf.export(model, tokenizer, target)


WAYS: dict[str, tuple[Callable, str] | None] = {
    "thimble": (_four_bits, "four-bits"),
    "vllm": (_four_bits, "four-bits"),
    "llama.cpp": (_blocks_of_32, "q4_0"),
    "transformers": None,
}
