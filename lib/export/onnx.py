"""Models as ONNX files, which onnxruntime and onnxruntime-genai run; our codes are kept exactly.

`export` writes a folder with `model.onnx` (the graph), `model.onnx.data` (the tensors), the tokenizer, and
`genai_config.json`, by which onnxruntime-genai opens the folder. Quantized matrices are `MatMulNBits` and
`GatherBlockQuantized` with our codes, scales and zero points (`onnx_codes` says which grids they hold); all other
tensors are stored in the smallest type that holds them exactly, and computed with in float32. `plan` is the same
without writing.

The accuracy level is onnxruntime's own word for how it computes products: 4 rounds the inputs of a quantized layer to
8 bits and is fast, 1 computes in float32, 0 leaves it to the runtime. A certificate says what each of them costs.

    python -m lib.export.onnx CHECKPOINT FOLDER      # a saved model, packed or plain, as an ONNX file
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from lib import files, folders
from lib.export import checks, onnx_codes, onnx_graph, onnx_settings, saved_models, stored_tensors
from lib.folders import manifest
from lib.models import blocks
from lib.quantized.grid import Quantized

FILE, DATA = "model.onnx", "model.onnx.data"
LEVELS = (0, 1, 4)
PLAIN = {"F16": torch.float16, "F32": torch.float32}
ROOM = 16 << 20  # bytes for graph, tokenizer and configuration


class Part(NamedTuple):
    """A matrix of the file: its name in the model, how it is stored, bytes, and the largest absolute error."""

    name: str
    kind: str
    nbytes: int
    error: float


def plan(model: nn.Module, *, otherwise: str | None = None) -> list[Part]:
    """What `export` would write of the matrices of `model`; nothing is written.

    otherwise: type of quantized matrices that the operators can't hold, "F32" (exact) or "F16"; None refuses them.
    Raises ValueError for grids that can't be written, naming what can and what it would cost.
    """
    if otherwise is not None and otherwise not in PLAIN:
        raise ValueError(f"otherwise={otherwise!r}; {', '.join(PLAIN)} are allowed, or None; choose one of them.")
    matrices, replaced = stored_tensors.stored(model)
    found = [_of_codes(name, matrix, otherwise) for name, matrix in matrices.items()]
    head = blocks.path_of(model, blocks.head(model))
    skipped = replaced | ({head} if blocks.alike(model) else set())
    for key, value in model.state_dict().items():
        if key.rpartition(".")[0] not in skipped and value.ndim == 2 and value.is_floating_point():
            found.append(Part(key, str(value.dtype).removeprefix("torch."), value.nbytes, 0.0))
    return found


def export(model: nn.Module, tokenizer, folder: Path | str, *, level: int = 4, otherwise: str | None = None) -> Path:
    """Write `model` and `tokenizer` as `folder`/model.onnx and what belongs to it, complete or absent.

    level: onnxruntime's accuracy level, 0, 1 or 4. otherwise: as for `plan`. The manifest says how many matrices are
    stored in which way (`types`), the level, and the largest error of a weight (`error`, 0.0 where all are exact).
    Raises ValueError as `plan` and `checks.check` do and for models that can't be traced, OSError as `folders.check`.
    """
    if isinstance(level, bool) or level not in LEVELS:
        raise ValueError(f"level={level!r}; {files.choices(level, LEVELS)}; 4 is fast, 1 computes in float32.")
    checks.check(model, tokenizer)
    parts = plan(model, otherwise=otherwise)
    # while it is written the plain tensors are there as they are traced, in float32
    folders.check(folder, sum(part.nbytes for part in parts) + ROOM)

    kinds = [part.kind for part in parts]
    origin = {"types": {kind: kinds.count(kind) for kind in sorted(set(kinds))}, "level": level}
    graph = onnx_graph.build(model, level=level, otherwise=PLAIN[otherwise or "F32"])
    with folders.replace(folder, kind="onnx", error=max(p.error for p in parts), **origin) as temporary:
        onnx_graph.write(graph, temporary / FILE, temporary / DATA)
        tokenizer.save_pretrained(temporary)
        onnx_settings.write(model, tokenizer, temporary, FILE)
    return Path(folder)


def _of_codes(name: str, matrix: Quantized, otherwise: str | None) -> Part:
    why = onnx_codes.refusal(matrix)
    if why is None:
        made = onnx_codes.pack(matrix)
        return Part(name, f"{made.bits} bits, blocks of {made.block}", made.nbytes, 0.0)
    dense = matrix.dense()
    costs = {
        kind: (dense.numel() * dtype.itemsize, float((dense.to(dtype).float() - dense).abs().max()))
        for kind, dtype in PLAIN.items()
    }
    if otherwise is None:
        cost = ", ".join(
            f"{key!r} {size:,} bytes with errors up to {error:.2g}" for key, (size, error) in costs.items()
        )
        raise ValueError(
            f"{name} has {why}; onnxruntime's operators hold 2 to 8 bits in groups of a multiple of "
            f"{onnx_codes.BLOCKS[-1]} columns; quantize it so, or store it as plain numbers, otherwise={cost}."
        )
    return Part(name, otherwise, *costs[otherwise])


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.export.onnx", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="the folder of a saved model, packed or plain")
    parser.add_argument("folder", help="where model.onnx is to lie")
    parser.add_argument("--level", type=int, choices=LEVELS, default=4, help="onnxruntime's accuracy level")
    parser.add_argument("--otherwise", choices=list(PLAIN), help="type of quantized matrices that no operator holds")
    given = parser.parse_args(arguments)
    model, tokenizer = saved_models.load(given.checkpoint)
    folder = export(model, tokenizer, given.folder, level=given.level, otherwise=given.otherwise)
    said = json.loads((folder / manifest.NAME).read_text())
    counts = ", ".join(f"{count} of {kind}" for kind, count in said["types"].items())
    size = sum((folder / name).stat().st_size for name in (FILE, DATA))
    print(f"{folder / FILE}: {size:,} bytes; {counts}; errors of up to {said['error']:g}")


if __name__ == "__main__":
    main()
