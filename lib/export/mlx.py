"""Quantized models in MLX's layout, which mlx-lm opens on Apple's machines and, more slowly, on others.

    weight   uint32 [rows, columns · bits / 32]    a row's codes one after another, the first in the lowest bits
    scales, biases   [rows, groups]                value = scale · code + bias

Codes of 2 to 6 and 8 bits keep their width, those of 7 go into 8, in groups of 32, 64 or 128 columns; a larger group is
several with one scale. A bias is minus scale times zero point: exact in float32, and in bfloat16 where its eight bits
suffice, which is asked of each matrix. Source: mlx/ops.cpp (quantize), mlx_lm/utils.py.

    mlx.export(model, tokenizer, folder)
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from lib import folders
from lib.export import checks, compressed_tensors, older_settings, packing, plain, pretrained, stored_tensors
from lib.models import blocks
from lib.quantized import integers
from lib.quantized.grid import Quantized

BITS, GROUPS = (2, 3, 4, 5, 6, 8), (128, 64, 32)


def refusal(matrix: Quantized) -> str | None:
    """Why the layout can't hold `matrix`, as the end of "it has ..."; None where it can."""
    if why := integers.refusal(matrix):
        return why
    if _group(matrix) is None:
        return f"groups of {matrix.group_size} columns, which {GROUPS[-1]} does not divide"
    return None


def pack(matrix: Quantized) -> dict[str, Tensor]:
    """The stored tensors of a matrix."""
    size, matrix = _group(matrix), integers.integer(matrix)
    bits = next(each for each in BITS if each >= matrix.bits)
    scale = matrix.scale.float()
    zero = 2 ** (matrix.bits - 1) if matrix.zero_point is None else matrix.zero_point.float()
    times = matrix.codes.shape[1] // scale.shape[1] // size
    parts = [_short(each).repeat_interleave(times, 1).contiguous() for each in (scale, -scale * zero)]
    words = packing.pack(matrix._replace(bits=bits, zero_point=None))["weight_packed"]
    return {"weight": words.view(torch.uint32), "scales": parts[0], "biases": parts[1]}


def dense(parts: dict[str, Tensor], *, bits: int, columns: int) -> Tensor:
    """The weights float32 [rows, columns] of the stored tensors."""
    places = torch.arange(columns) * bits
    words = parts["weight"].view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    low, shift = words[:, places // 32], places % 32
    high = words[:, ((places + bits - 1) // 32)]
    codes = ((low | torch.where(shift + bits > 32, high, 0) << 32) >> shift) & (2**bits - 1)
    groups = codes.float().unflatten(1, (parts["scales"].shape[1], -1))
    return (groups * parts["scales"].float()[..., None] + parts["biases"].float()[..., None]).flatten(1)


class Layout(pretrained.Packed):
    """Lets transformers save a model with the tensors of the layout; its settings stand in config.json."""

    def get_state_dict_and_metadata(self, model):
        """The tensors to write, and no metadata."""
        blocks.state_tying_(model)
        model.config.quantization = settings(model)
        return stored_tensors.packed_state(model, pack=lambda matrix, dtype: pack(matrix)), {}


def matrices(tensors: dict[str, Tensor], quantization: dict) -> tuple[dict[str, tuple[str, Tensor]], dict[str, Tensor]]:
    """(grid and values of each packed matrix by name, the other tensors) of a file with these settings."""
    found = {}
    for name in [key.removesuffix(".biases") for key in tensors if key.endswith(".biases")]:
        parts = {part: tensors[f"{name}.{part}"] for part in ("weight", "scales", "biases")}
        grid = {**quantization, **quantization.get(name, {})}
        columns = parts["scales"].shape[1] * grid["group_size"]
        values = dense(parts, bits=grid["bits"], columns=columns)
        found[name] = (f"{grid['bits']} bits, groups of {grid['group_size']}", values)
    return found, {key: value for key, value in tensors.items() if key.rpartition(".")[0] not in found}


def settings(model: nn.Module) -> dict:
    """What config.json says of the grids: of most layers, and of each other one by its name."""
    grids = {}
    for name, matrix in stored_tensors.stored(model)[0].items():
        bits = matrix.bits + (matrix.levels != "integer")
        grids[name] = (_group(matrix), next(each for each in BITS if each >= bits))
    most = max(set(grids.values()), key=list(grids.values()).count)
    others = {name: dict(zip(("group_size", "bits"), grid)) for name, grid in grids.items() if grid != most}
    return {**dict(zip(("group_size", "bits"), most)), **others}


def export(model: nn.Module, tokenizer, folder: Path | str) -> Path:
    """Write `model` and `tokenizer`, complete or absent; returns `folder`.

    Raises ValueError for models without quantized layers and for grids that the layout can't hold, OSError as
    `folders.check`, before the work.
    """
    checks.check(model, tokenizer)
    if not stored_tensors.layers(model):
        raise ValueError(
            f"{type(model).__name__} has no quantized layers; quantize it first, or use export.plain.save."
        )
    for name, matrix in stored_tensors.stored(model)[0].items():
        if (why := refusal(matrix)) is not None:
            raise ValueError(
                f"{name} has {why}; MLX's layout holds {', '.join(map(str, BITS))} bits in groups of a multiple of "
                f"{GROUPS[-1]}; quantize it so, or leave it plain ({2 * matrix.codes.numel():,} bytes in 16 bits)."
            )
    folders.check(folder, 2 * plain.size(model) + plain.ROOM)
    model.hf_quantizer = Layout()
    try:
        with folders.replace(folder, kind="mlx") as temporary:
            plain.fill(model, tokenizer, temporary)
            older_settings.add(temporary)
    finally:
        compressed_tensors.mark(model)
        if hasattr(model.config, "quantization"):
            del model.config.quantization
    return Path(folder)


def _group(matrix: Quantized) -> int | None:
    size = matrix.codes.shape[1] // matrix.scale.shape[1]
    return next((each for each in GROUPS if size % each == 0), None)


def _short(values: Tensor) -> Tensor:
    """In bfloat16 where that is exact."""
    short = values.to(torch.bfloat16)
    return short if torch.equal(short.float(), values) else values
