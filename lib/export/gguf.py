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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy
import torch
from torch import Tensor, nn

from lib import folders, tokenization
from lib.export import gguf_blocks, gguf_metadata, gguf_vocabulary, saved_models, stored_tensors
from lib.folders import manifest
from lib.models import blocks
from lib.quantized.grid import Quantized

FILE = "model.gguf"
PLAIN = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
ROOM = 8 << 20  # bytes for metadata besides the tokens, and for the manifest
_TOKEN = 96  # bytes that a token and its merge take at most, on average
_QUANTIZATION_VERSION = 2


class Part(NamedTuple):
    """A tensor of the file: its name there and in the model, its type, bytes, and the largest absolute error."""

    name: str
    source: str
    kind: str
    nbytes: int
    error: float


def plan(model: nn.Module, *, otherwise: str | None = None, plain: str | None = None) -> list[Part]:
    """What `export` would write of `model`, tensor by tensor; nothing is written.

    otherwise: type of quantized matrices that no block holds, "F32" (exact), "F16" or "BF16"; None refuses them.
    plain: type of the matrices that are not quantized; None takes for each the smallest that holds it exactly.
    Raises ValueError for models and grids that can't be written, naming what can and what it would cost.
    """
    _check(model, otherwise, plain)
    rename, found = gguf_metadata.names(model), []
    for name, value in values(model):
        if isinstance(value, Quantized):
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
) -> Path:
    """Write `model` and `tokenizer` as `folder`/model.gguf, complete or absent; returns `folder`.

    The manifest says how many tensors have each type (`types`) and the largest error of a weight (`error`, 0.0 where
    all are exact). otherwise, plain: as for `plan`. name: of the model, as programs show it; the folder's by default.
    Raises ValueError as `plan` does and for a tokenizer that the format can't hold, OSError as `folders.check` does,
    all before the work.
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
    parts = plan(model, otherwise=otherwise, plain=plain)
    folders.check(folder, sum(part.nbytes for part in parts) + rows * _TOKEN + ROOM)
    kinds = [part.kind for part in parts]
    origin = {"types": {kind: kinds.count(kind) for kind in sorted(set(kinds))}, "error": max(p.error for p in parts)}
    with folders.replace(folder, kind="gguf", **origin) as temporary:
        writer = gguf.GGUFWriter(temporary / FILE, gguf.MODEL_ARCH_NAMES[gguf_metadata.architecture(model)])
        try:
            writer.add_name(name or Path(folder).name)
            writer.add_quantization_version(_QUANTIZATION_VERSION)
            writer.add_file_type(_file_type(parts))
            gguf_metadata.write(writer, model)
            gguf_vocabulary.write(writer, tokenizer, rows, getattr(model, "generation_config", None))
            _write_tensors(writer, model, parts)
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


def values(model: nn.Module) -> Iterator[tuple[str, Quantized | Tensor]]:
    """(name, matrix or tensor) of all that the file holds, rows in llama.cpp's order; a tied matrix comes once."""
    matrices, replaced = stored_tensors.stored(model)
    head = blocks.path_of(model, blocks.head(model))
    skipped = {head} if blocks.alike(model) else set()
    state = {f"{name}.weight": matrix for name, matrix in matrices.items()}
    state |= {
        key: tensor
        for key, tensor in model.state_dict().items()
        if key.rpartition(".")[0] not in replaced or key.endswith(".bias")
    }
    for key, value in state.items():
        if key.rpartition(".")[0] not in skipped:
            yield key, _ordered(model, key, value)
    if (factors := gguf_metadata.factors(model)) is not None:
        yield "rope_freqs.weight", factors


def _ordered(model, name: str, value):
    rows = len(value.codes if isinstance(value, Quantized) else value)
    order = gguf_metadata.row_order(model, name, rows)
    if isinstance(value, Quantized):
        value = value._replace(
            **{
                part: each.cpu()
                for part in ("codes", "scale", "zero_point")
                if (each := getattr(value, part)) is not None
            }
        )
        if order is None:
            return value
        zero = None if value.zero_point is None else value.zero_point[order]
        return value._replace(codes=value.codes[order], scale=value.scale[order], zero_point=zero)
    value = value.detach().cpu()
    return value if order is None else value[order]


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


def _write_tensors(writer, model, parts: list[Part]) -> None:
    """Write header and tensors, one after another: no second copy of the model is held."""
    shapes = {
        name: tuple((value.codes if isinstance(value, Quantized) else value).shape) for name, value in values(model)
    }
    for part in parts:
        raw = gguf.GGMLQuantizationType[part.kind]
        writer.add_tensor_info(part.name, shapes[part.source], numpy.dtype(numpy.float32), part.nbytes, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for part, (name, value) in zip(parts, values(model), strict=True):
        writer.write_tensor_data(_bytes(model, part, name, value))


def _bytes(model, part: Part, name: str, value) -> numpy.ndarray:
    if part.kind in gguf_blocks.KINDS:
        return gguf_blocks.pack(gguf_blocks.levels(value), part.kind)
    if isinstance(value, Quantized):
        value = value.dense()
    if value.ndim == 1:
        value = gguf_metadata.vector(model, name, value)
    return value.to(PLAIN[part.kind]).contiguous().view(torch.uint8).numpy()


def _file_type(parts: list[Part]) -> int:
    """The type of most weights, as llama.cpp names files."""
    sizes = {}
    for part in parts:
        sizes[part.kind] = sizes.get(part.kind, 0) + part.nbytes
    most = max(sizes, key=sizes.get)
    return int(gguf.LlamaFileType.ALL_F32 if most == "F32" else gguf.LlamaFileType[f"MOSTLY_{most}"])


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
