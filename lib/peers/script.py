"""The common part of every peer's script: reads arguments, takes the time, writes a plain checkpoint.

This runs in the peer's own interpreter: it needs the standard library, torch, transformers and safetensors only.
"""

import contextlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_CARRIED = ("tokenizer*", "special_tokens_map.json", "chat_template*", "vocab*", "merges.txt", "generation_config.json")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


@dataclass
class Job:
    """A job for a peer, and the time and memory that it took.

    model: folder of the checkpoint. tokens: LongTensor [count, length] or None. work: folder for the peer's own files,
    deleted afterwards. folder: where the plain checkpoint goes. seconds, peak_bytes: filled in by `measured`.
    """

    model: Path
    tokens: object
    bits: int
    group_size: int | None
    options: dict
    work: Path
    folder: Path
    seconds: float | None = None
    peak_bytes: int | None = None

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Add the seconds of the block to `seconds`, and keep its peak of resident memory in bytes.

        Where the kernel can't reset its high-water mark, the peak of the whole process so far is kept.
        """
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")
        start = time.perf_counter()
        yield
        self.seconds = (self.seconds or 0.0) + time.perf_counter() - start
        self.peak_bytes = max(self.peak_bytes or 0, _peak())

    def load(self, *, alike: bool = True):
        """(model, tokenizer) of the checkpoint, in the type that it is stored in, on the CPU.

        alike: whether all layers need groups of `group_size`; ValueError for columns that it does not divide.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer  # loads torch; peers are read without

        model = AutoModelForCausalLM.from_pretrained(self.model, dtype="auto").eval()
        for name, layer in linears(model).items():
            if alike and self.group_size and layer.in_features % self.group_size:
                raise ValueError(
                    f"group_size={self.group_size} does not divide {layer.in_features} columns of {name}; "
                    "choose one that divides the columns of every layer, 32 or 64 for instance."
                )
        return model, AutoTokenizer.from_pretrained(self.model)


def main(quantize: Callable) -> None:
    """Read the arguments' JSON (the first command-line argument), run `quantize(job)`, write results and report.

    `quantize` returns the dequantized weights by parameter name (float32, on the CPU) and a dict of facts to report.
    """
    arguments = json.loads(Path(sys.argv[1]).read_text())
    report = Path(arguments.pop("report"))
    job = Job(**{**arguments, **{key: Path(arguments[key]) for key in ("model", "work", "folder")}})
    if job.tokens is not None:
        from safetensors.torch import load_file  # loads torch; peers are read without

        job.tokens = load_file(job.tokens)["tokens"]
    weights, facts = quantize(job)
    dtype = save(job, weights)
    report.write_text(json.dumps({"seconds": job.seconds, "peak_bytes": job.peak_bytes, "dtype": dtype, **facts}))


def linears(model) -> dict:
    """The linear layers of the decoder blocks by dotted name: all but the output head."""
    from torch import nn  # peers are read without torch

    head = model.get_output_embeddings()
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear) and part is not head}


def on_grid(weight, scale, zero, *, bits: int, group_size: int):
    """scale * (code - zero) in float32 [rows, columns], for a `weight` that a peer has rounded to that grid already.

    weight: the peer's, in its own type, whose rounding this undoes. scale, zero: [rows, columns / group_size].
    Raises ValueError when `weight` is not on the grid, which means that the peer's layout was misread.
    """
    rows, columns = weight.shape
    given = weight.detach().float().view(rows, columns // group_size, group_size)
    scale, zero = (part.detach().float().reshape(rows, -1, 1) for part in (scale, zero))
    codes = (given / scale + zero).round().clamp(0, 2**bits - 1)
    found = scale * (codes - zero)
    # a bfloat16 has 8 bits of precision, so the peer's own weight may lie 1/256 of its size beside the grid
    off = ((found - given).abs() > scale / 64 + given.abs() / 128).float().mean().item()
    if off > 0:
        raise ValueError(
            f"{off:.1%} of a layer's weights are not on the grid that the peer reports; all must be; "
            "its layout may have changed: install the version that its file names."
        )
    return found.view(rows, columns)


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files in a peer's own save: what it needs on disk, tokenizer and settings aside."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in _WEIGHTS)


def save(job: Job, weights: dict) -> str:
    """Write the original checkpoint with `weights` in place of its own to `job.folder`; returns the type it is in.

    The type is the original's where that holds every weight exactly, else float32.
    Raises ValueError for missing layers, other shapes, and values that are not finite.
    """
    import torch  # peers are read without torch
    from transformers import AutoModelForCausalLM  # loads torch

    stored = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto").dtype
    exact = all(torch.equal(value.to(stored).float(), value.float()) for value in weights.values())
    dtype = stored if exact else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype)
    missing = [name for name in linears(model) if f"{name}.weight" not in weights]
    if missing:
        raise ValueError(f"{len(missing)} layers came back without weights, {missing[0]} first; all are needed.")
    own = model.state_dict()
    for name, value in weights.items():
        if value.shape != own[name].shape or not value.isfinite().all():
            raise ValueError(f"{name} came back as {list(value.shape)}; {list(own[name].shape)} and finite is needed.")
        own[name].copy_(value)
    job.folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(job.folder)
    for pattern in _CARRIED:
        for path in job.model.glob(pattern):
            shutil.copy(path, job.folder)
    return str(dtype).removeprefix("torch.")


def resident(usage) -> int:
    """The peak of resident memory in bytes out of what `resource.getrusage` or `os.wait4` tell about a process."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # macOS counts bytes, other systems kibibytes


def _peak():
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resident(resource.getrusage(resource.RUSAGE_SELF))
