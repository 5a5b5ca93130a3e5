"""Models with a low-rank part of 8 bits beside their layers, in a folder of two files more than a checkpoint.

    folder/model/                 a checkpoint as `plain` or `compressed_tensors` writes it, which knows of no such part
    folder/low_rank.safetensors   the part: codes (uint8), scales (bfloat16) and factors by layer
    folder/low_rank.json          the SHA-256 of the checkpoint's weights, and the layers

The checkpoint lies one level down, so that no reader takes the model without its part for the whole.
"""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from lib import checkpoints, files, folders
from lib.export import compressed_tensors, plain, stored_tensors
from lib.quantized import low_rank_linear
from lib.quantized.grid import Quantized
from lib.quantized.low_rank_linear import BITS, LowRankLinear
from lib.sources import model_loading

MODEL, TENSORS, NOTE = "model", "low_rank.safetensors", checkpoints.LOW_RANK
_PARTS = ("a_codes", "a_scale", "b_codes", "b_scale", "factor")


def save(model: nn.Module, tokenizer, folder: Path | str) -> Path:
    """Write `model`, of which layers are `LowRankLinear`, and `tokenizer`; complete or absent. Returns `folder`.

    Raises ValueError for a model without such layers, and before the work OSError as `plain.save` does.
    """
    parts = low_rank_linear.layers(model)
    if not parts:
        raise ValueError(
            f"{type(model).__name__} has no low-rank part beside its layers; write it with export.plain.save, or with "
            "export.compressed_tensors.save if it is quantized."
        )
    low_rank_linear.without_(model)
    try:
        if stored_tensors.layers(model):
            compressed_tensors.mark(model)
        size = plain.size(model) + sum(part.nbytes for part in parts.values())
        folders.check(folder, size + plain.ROOM)
        with folders.replace(folder, kind="low-rank") as temporary:
            plain.fill(model, tokenizer, temporary / MODEL)
            save_file(_tensors(parts), temporary / TENSORS)
            note = {"model": checkpoints.fingerprint(temporary / MODEL), "layers": list(parts)}
            files.write_text(temporary / NOTE, json.dumps(note, indent=1))
    finally:
        low_rank_linear.with_(model, parts)
    return Path(folder).expanduser()


def load(folder: Path | str):
    """Read what `save` wrote; returns (model in eval mode, tokenizer).

    Raises FileNotFoundError or ValueError where the folder is broken, or its parts do not belong together.
    """
    folders.recover(folder)
    return folders.unchanged(folder, lambda: _load(Path(folder).expanduser()))


def is_folder(folder: Path | str) -> bool:
    """Whether `save` wrote `folder`."""
    return (Path(folder) / NOTE).is_file() and (Path(folder) / MODEL).is_dir()


def _load(folder: Path):
    checkpoints.verify(folder)
    config = checkpoints.checkpoint(folder / MODEL)
    model, tokenizer = model_loading.read(folder / MODEL, config)
    note, tensors = checkpoints.stored.json_object(folder / NOTE), load_file(folder / TENSORS)
    if note["model"] != checkpoints.fingerprint(folder / MODEL):
        raise ValueError(
            f"{files.place(folder)} holds a low-rank part of a model with SHA-256 {note['model'][:12]} and a model "
            f"with {checkpoints.fingerprint(folder / MODEL)[:12]}; they must belong together; copy the folder again."
        )
    parts = {name: _part(model.get_submodule(name), name, tensors) for name in note["layers"]}
    model.tokenizer = tokenizer
    return low_rank_linear.with_(model, parts).eval(), tokenizer


def _tensors(parts: dict[str, LowRankLinear]) -> dict:
    found = {f"{name}.{key}": getattr(part, key) for name, part in parts.items() for key in _PARTS}
    return {key: each.cpu().contiguous() for key, each in found.items() if each is not None}


def _part(layer: nn.Module, name: str, tensors: dict) -> LowRankLinear:
    codes, scales = ([tensors[f"{name}.{side}_{kind}"] for side in "ab"] for kind in ("codes", "scale"))
    a, b = (Quantized(c, s, None, BITS, c.shape[1]) for c, s in zip(codes, scales))
    return LowRankLinear(layer, a, b, tensors.get(f"{name}.factor"))
