"""Models as GGUF files, which llama.cpp and the programs built on it read; our codes are kept exactly where they fit.

`export` writes a folder with `model.gguf` and a manifest. Quantized matrices are re-expressed in the smallest type that
holds their values exactly (`gguf_blocks` says when): 2 and 3 bits in Q4_0, 4 bits in Q4_0, Q4_1 or Q5_0, 5 to 7 bits
and symmetric 8 in Q8_0, each with any group size that 32 divides. No weight is rounded a second time, except where half
precision can't hold a scale; `plan` says by how much. Plain matrices get the smallest of F16, BF16 and F32 that holds
them exactly, norms and biases are F32. `plan` is the same without writing.

    python -m lib.export.gguf CHECKPOINT FOLDER      # a saved model, packed or plain, as a GGUF file
"""

import argparse
import json
from pathlib import Path

import gguf
import torch
from torch import Tensor, nn

from lib import folders, tokenization
from lib.export import gguf_blocks, gguf_metadata, gguf_tensors, gguf_vocabulary, saved_models
from lib.export.gguf_tensors import PLAIN, Part, values
from lib.folders import manifest
from lib.models import blocks
from lib.quantized.gguf_types import Blocks
from lib.quantized.grid import Quantized

FILE = "model.gguf"
ROOM = 8 << 20  # bytes for metadata besides the tokens, and for the manifest
_TOKEN = 96  # bytes that a token and its merge take at most, on average
_QUANTIZATION_VERSION = 2


def plan(
    model: nn.Module,
    *,
    otherwise: str | None = None,
    plain: str | None = None,
    aimed: dict[str, Blocks] | None = None,
) -> list[Part]:
    """What `export` would write of `model`, tensor by tensor; nothing is written.

    otherwise: type of quantized matrices that no block holds, "F32" (exact), "F16" or "BF16"; None refuses them.
    plain: type of the matrices that are not quantized; None takes for each the smallest that holds it exactly.
    aimed: matrices by name that are on a grid of the file already, as `quantizers.aimed` returns them.
    Raises ValueError for models and grids that can't be written, naming what can and what it would cost.
    """
    _check(model, otherwise, plain)
    _check_aimed(model, aimed or {})
    rename, found = gguf_metadata.names(model), []
    for name, value in values(model, aimed):
        if isinstance(value, Blocks):
            kind, size, error = value.kind, value.data.numel(), 0.0
        elif isinstance(value, Quantized):
            kind, size, error = _of_codes(name, value, otherwise)
        else:
            kind, size, error = _of_floats(model, name, value, plain)
        found.append(Part(rename(name), name, kind, size, error))
    return found


def export(
    model: nn.Module,
    tokenizer,
    folder: Path | str,
    *,
    otherwise: str | None = None,
    plain: str | None = None,
    name: str | None = None,
    aimed: dict[str, Blocks] | None = None,
) -> Path:
    """Write `model` and `tokenizer` as `folder`/model.gguf, complete or absent; returns `folder`.

    The manifest says how many tensors have each type (`types`) and the largest error of a weight (`error`, 0.0 where
    all are exact). otherwise, plain, aimed: as for `plan`. name: of the model, as programs show it; the folder's by
    default. Raises ValueError as `plan` does and for a tokenizer that the format can't hold, OSError as
    `folders.check` does, all before the work.
    """
    blocks.refuse_adapters(model)
    if tokenizer is None:
        raise ValueError(f"{type(model).__name__} has no tokenizer; a GGUF file needs one; set model.tokenizer.")
    gguf_metadata.architecture(model)
    rows = blocks.embeddings(model).num_embeddings
    gguf_vocabulary.check(tokenizer, rows)
    template = tokenizer.chat_template or ""
    for each in template.values() if isinstance(template, dict) else [template]:
        tokenization.check(each, "the chat template")
    parts = plan(model, otherwise=otherwise, plain=plain, aimed=aimed)
    folders.check(folder, sum(part.nbytes for part in parts) + rows * _TOKEN + ROOM)
    kinds = [part.kind for part in parts]
    origin = {"types": {kind: kinds.count(kind) for kind in sorted(set(kinds))}, "error": max(p.error for p in parts)}
    with folders.replace(folder, kind="gguf", **origin) as temporary:
        writer = gguf.GGUFWriter(temporary / FILE, gguf.MODEL_ARCH_NAMES[gguf_metadata.architecture(model)])
        try:
            writer.add_name(name or Path(folder).name)
            writer.add_quantization_version(_QUANTIZATION_VERSION)
            writer.add_file_type(gguf_tensors.file_type(parts))
            gguf_metadata.write(writer, model)
            gguf_vocabulary.write(writer, tokenizer, rows, getattr(model, "generation_config", None))
            gguf_tensors.write(writer, model, parts, aimed)
        finally:
            writer.close()
    return Path(folder)


def _check(model, otherwise, plain) -> None:
    for key, value in (("otherwise", otherwise), ("plain", plain)):
        if value is not None and value not in PLAIN:
            raise ValueError(f"{key}={value!r}; {', '.join(PLAIN)} are allowed, or None; choose one of them.")
    gguf_metadata.check(model)
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(f"{type(model).__name__} has no numbers (meta tensors); a file needs them; load the weights.")


def _check_aimed(model: nn.Module, aimed: dict[str, Blocks]) -> None:
    """Raise ValueError for matrices that are not those of `model`: it was changed since, or is another one."""
    for name, matrix in aimed.items():
        if not torch.equal(matrix.dense(), model.get_submodule(name).weight.detach().float().cpu()):
            raise ValueError(
                f"{name} holds other weights than its {matrix.kind} blocks; they must be those that aiming gave it; "
                "aim again at the model as it is, or leave out aimed=."
            )


def _of_codes(name: str, matrix: Quantized, otherwise: str | None) -> tuple[str, int, float]:
    found = gguf_blocks.levels(matrix)
    held = None if isinstance(found, str) else gguf_blocks.choose(found)
    if held is not None:
        size = len(found.whole) * gguf_blocks.KINDS[held.kind].nbytes
        return held.kind, size, held.error
    dense = matrix.dense()
    costs = {kind: (dense.numel() * dtype.itemsize, _rounding(dense, dtype)) for kind, dtype in PLAIN.items()}
    if otherwise is None:
        why = (
            found
            if isinstance(found, str)
            else f"{matrix.bits}-bit codes too far from zero, or scales beyond half precision"
        )
        cost = ", ".join(
            f"{kind!r} {size:,} bytes with errors up to {error:.2g}" for kind, (size, error) in costs.items()
        )
        raise ValueError(
            f"{name} has {why}; GGUF's types hold groups of a multiple of {gguf_blocks.SIZE} columns of up to 7 bits, "
            f"or symmetric ones of 8; quantize it so, or store it as plain numbers, otherwise={cost}."
        )
    return otherwise, *costs[otherwise]


def _of_floats(model, name: str, value: Tensor, plain: str | None) -> tuple[str, int, float]:
    if value.ndim == 1:
        return "F32", 4 * value.numel(), 0.0
    errors = {kind: _rounding(value.float(), dtype) for kind, dtype in PLAIN.items()}
    kind = plain or next(kind for kind, error in errors.items() if error == 0)
    return kind, value.numel() * PLAIN[kind].itemsize, errors[kind]


def _rounding(values: Tensor, dtype: torch.dtype) -> float:
    """The largest error of `values` in `dtype`."""
    return float((values.to(dtype).float() - values).abs().max())


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.export.gguf", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="the folder of a saved model, packed or plain")
    parser.add_argument("folder", help="where model.gguf is to lie")
    parser.add_argument("--otherwise", choices=list(PLAIN), help="type of quantized matrices that no block holds")
    parser.add_argument("--plain", choices=list(PLAIN), help="type of all matrices that are not quantized")
    given = parser.parse_args(arguments)
    model, tokenizer = saved_models.load(given.checkpoint)
    folder = export(model, tokenizer, given.folder, otherwise=given.otherwise, plain=given.plain)
    said = json.loads((folder / manifest.NAME).read_text())
    counts = ", ".join(f"{count} {kind}" for kind, count in said["types"].items())
    print(f"{folder / FILE}: {(folder / FILE).stat().st_size:,} bytes; {counts}; errors of up to {said['error']:g}")


if __name__ == "__main__":
    main()
