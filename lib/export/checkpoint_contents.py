"""What a checkpoint holds, packed or plain, and whether it is what a model's export should hold."""

import json
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.export import awq, column_layouts, gptq, mlx, saved_models, stored_tensors
from lib.models import blocks

LAYOUTS = {"awq": awq, "gptq": gptq}
_TINY = torch.finfo(torch.float32).tiny


def types(file: Path | str) -> dict[str, int]:
    """How many matrices have each grid, and how many are plain."""
    found = _stored(Path(file).parent)
    return dict(Counter(kind for kind, _ in found.values()))


def compare(file: Path | str, model: nn.Module) -> dict:
    """The weights of the checkpoint beside those of `model`: as `gguf_contents.compare`."""
    ours, theirs = _matrices(model), _stored(Path(file).parent)
    result = {"tensors": len(ours), "exact": 0, "largest": 0.0, "where": None}
    missing = [name for name, (_, value) in ours.items() if name not in theirs or theirs[name][1].shape != value.shape]
    for name in ours.keys() - set(missing):
        wanted, found = ours[name][1].float(), theirs[name][1].float()
        apart = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=_TINY))
        result["exact"] += torch.equal(found, wanted)
        if apart > result["largest"]:
            result |= {"largest": apart, "where": name}
    return {**result, "missing": missing, "left_over": sorted(theirs.keys() - ours.keys())}


def _stored(folder: Path) -> dict[str, tuple[str, Tensor]]:
    """As `_matrices`, of a folder; of AWQ's, GPTQ's and MLX's layouts too."""
    config = json.loads((folder / "config.json").read_text())
    layout = LAYOUTS.get((config.get("quantization_config") or {}).get("quant_method"))
    if layout is None and "quantization" not in config:
        return _matrices(saved_models.load(folder)[0])
    tied, tensors = config.get("tie_word_embeddings"), column_layouts.tensors(folder)
    if layout is None:
        found, tensors = mlx.matrices(tensors, config["quantization"])
    else:
        found = {name: ("4 bits", layout.dense(parts)) for name, parts in column_layouts.matrices(tensors).items()}
    for key, value in tensors.items():
        if key.endswith(".weight") and value.ndim == 2 and not (tied and key.startswith("lm_head")):
            found[key.removesuffix(".weight")] = (str(value.dtype).removeprefix("torch."), value)
    return found


def _matrices(model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """(grid or type, values) by name; of a tied matrix the embedding's alone."""
    matrices, replaced = stored_tensors.stored(model)
    head = blocks.path_of(model, blocks.head(model))
    found = {name: (f"{each.bits} bits, groups of {each.group_size}", each.dense()) for name, each in matrices.items()}
    for key, value in model.state_dict().items():
        name = key.removesuffix(".weight")
        if value.ndim != 2 or not key.endswith(".weight") or name in replaced or (name == head and blocks.alike(model)):
            continue
        found[name] = (str(value.dtype).removeprefix("torch."), value)
    return found
