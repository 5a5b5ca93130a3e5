"""The layouts of AWQ and GPTQ: 4-bit codes of eight outputs, or eight inputs, in an int32; what both have in common.

    AWQ     qweight int32 [columns, rows / 8], qzeros int32 [groups, rows / 8]: eight neighbouring rows in the order
            0 2 4 6 1 3 5 7, the first in the lowest bits
    GPTQ    qweight int32 [columns / 8, rows]: eight neighbouring columns; qzeros int32 [groups, rows / 8]: zero points
            less one; g_idx int32 [columns]: the group of each column
    both    scales float16 [groups, rows]

Codes of up to 4 bits fit, with whole zero points (GPTQ's readers on processors want the middle one for all), in groups
of one size for all layers, if half precision holds the scales. Embedding and head stay plain. Source: the loaders of
vLLM 0.32 (quantization/auto_awq.py, auto_gptq.py).
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lib import checkpoints, folders
from lib.export import checks, compressed_tensors, older_settings, plain, pretrained, stored_tensors
from lib.models import blocks
from lib.quantized import integers
from lib.quantized.grid import Quantized

BITS, MANY = 4, 8  # of a code, and codes of an int32
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
MIDDLE = 2 ** (BITS - 1)


def packed(codes: Tensor, order=tuple(range(MANY))) -> Tensor:
    """Codes [..., count] as int32 [..., count / 8]."""
    parts = codes.unflatten(-1, (-1, MANY))[..., list(order)].to(torch.int64)
    return (parts << (torch.arange(MANY) * BITS)).sum(-1).to(torch.uint32).view(torch.int32)


def unpacked(words: Tensor, order=tuple(range(MANY))) -> Tensor:
    """The inverse of `packed`."""
    found = (words[..., None].to(torch.int64) >> (torch.arange(MANY) * BITS)) & (2**BITS - 1)
    return found[..., [order.index(place) for place in range(MANY)]].flatten(-2)


def grid(matrix: Quantized) -> tuple[Tensor, Tensor, Tensor]:
    """(codes [rows, columns], zero points, scales float16 [rows, groups]) of 4 bits; a symmetric grid's zero is 8."""
    matrix = integers.integer(matrix)
    if matrix.zero_point is None:
        shift = MIDDLE - 2 ** (matrix.bits - 1)
        zeros = torch.full(matrix.scale.shape, MIDDLE, dtype=torch.uint8)
        return matrix.codes + shift, zeros, matrix.scale.half()
    return matrix.codes, matrix.zero_point, matrix.scale.half()


def refusal(matrix: Quantized, *, symmetric: bool) -> str | None:
    """Why the layouts can't hold `matrix`, as the end of "it has ..."; None where they can."""
    rows, columns = matrix.codes.shape
    if matrix.codebook is not None:
        return f"a codebook of {2**matrix.bits} levels, which are not evenly spaced"
    if matrix.bits + (matrix.levels != "integer") > BITS:
        return f"{matrix.bits} bits" + (" with zero points that are halves" if matrix.levels != "integer" else "")
    if symmetric and matrix.zero_point is not None:
        return "zero points of its own"
    if rows % MANY or columns % MANY:
        return f"{rows} rows and {columns} columns, which {MANY} does not divide"
    if not torch.equal(matrix.scale.half().float(), matrix.scale.float()):
        return "scales that half precision does not hold"
    return None


def check(model: nn.Module, name: str, *, symmetric: bool) -> int:
    """The group size of all layers; ValueError for what the layout called `name` can't hold, with the cost."""
    layers, sizes = stored_tensors.layers(model), set()
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no quantized layers; quantize it first, or use export.plain.save."
        )
    ends = {blocks.path_of(model, part) for part in (blocks.embeddings(model), blocks.head(model))}
    for path, part in layers.items():
        matrix = part.quantized
        why = "a place at the ends of the model" if path in ends else refusal(matrix, symmetric=symmetric)
        if why is not None:
            grids = "symmetric grids" if symmetric else "grids with whole zero points"
            raise ValueError(
                f"{path} has {why}; {name}'s layout holds {grids} of up to {BITS} bits in blocks' layers, with scales "
                f"of half precision; quantize it so, or leave it plain ({2 * matrix.codes.numel():,} bytes); "
                "export.compressed_tensors.save holds it as it is."
            )
        sizes.add(matrix.group_size)
    if len(sizes) > 1:
        raise ValueError(
            f"{type(model).__name__} has groups of {', '.join(map(str, sorted(sizes)))} columns; {name}'s layout has "
            "one size for all layers; quantize it so, or use export.compressed_tensors.save."
        )
    return sizes.pop()


class Layout(pretrained.Packed):
    """Lets transformers save a model with the tensors and settings of a layout."""

    def __init__(self, pack: Callable, settings: dict):
        super().__init__()
        self.pack, self.settings = pack, settings

    def get_state_dict_and_metadata(self, model):
        """The tensors to write, and no metadata."""
        blocks.state_tying_(model)
        model.config.quantization_config = self.settings
        return stored_tensors.packed_state(model, pack=lambda matrix, dtype: self.pack(matrix)), {}


def write(model: nn.Module, tokenizer, folder: Path | str, layout: Layout, kind: str) -> Path:
    """Write a checked model in a layout, complete or absent; `model` is as it was afterwards."""
    checks.check(model, tokenizer)
    folders.check(folder, plain.size(model) + plain.ROOM)
    model.hf_quantizer = layout
    try:
        with folders.replace(folder, kind=kind) as temporary:
            plain.fill(model, tokenizer, temporary)
            older_settings.add(temporary)
    finally:
        compressed_tensors.mark(model)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    return Path(folder)


def tensors(folder: Path | str) -> dict[str, Tensor]:
    """All tensors of a folder by their names in its files."""
    found = {}
    for path in checkpoints.weights(folder):
        found |= load_file(path)
    return found


def matrices(found: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The stored tensors of each packed matrix, by the matrix' name."""
    parts = ("qweight", "qzeros", "scales", "g_idx")
    names = [key.removesuffix(".qweight") for key in found if key.endswith(".qweight")]
    return {name: {key: found[f"{name}.{key}"] for key in parts if f"{name}.{key}" in found} for name in names}
