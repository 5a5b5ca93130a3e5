"""Quantized models in GPTQ's layout, which vLLM and others open; the codes are ours, whichever method chose them.

gptq.export(model, tokenizer, folder)      # `column_layouts` says what it holds exactly
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from lib.export import column_layouts
from lib.quantized.grid import Quantized


def export(model: nn.Module, tokenizer, folder: Path | str) -> Path:
    """Write `model`, whose layers of blocks are symmetric, and `tokenizer`, complete or absent; returns `folder`.

    Raises ValueError for what the layout can't hold, naming what it can and what that costs, OSError as
    `folders.check`, before the work.
    """
    size = column_layouts.check(model, "GPTQ", symmetric=True)
    settings = {
        "quant_method": "gptq", "bits": column_layouts.BITS, "group_size": size, "desc_act": False, "sym": True,
        "lm_head": False, "checkpoint_format": "gptq",
    }  # fmt: skip
    return column_layouts.write(model, tokenizer, folder, column_layouts.Layout(pack, settings), "gptq")


def pack(matrix: Quantized) -> dict[str, Tensor]:
    """The stored tensors of a matrix."""
    codes, zeros, scales = column_layouts.grid(matrix)
    size = codes.shape[1] // zeros.shape[1]
    return {
        "qweight": column_layouts.packed(codes).T.contiguous(),
        "qzeros": column_layouts.packed((zeros - 1).T),
        "scales": scales.T.contiguous(),
        "g_idx": torch.arange(codes.shape[1], dtype=torch.int32) // size,
    }


def dense(parts: dict[str, Tensor]) -> Tensor:
    """The weights float32 [rows, columns] of the stored tensors."""
    codes = column_layouts.unpacked(parts["qweight"].T).float()
    groups = parts["g_idx"].long()
    zeros = column_layouts.unpacked(parts["qzeros"]).float() + 1
    return (codes - zeros[groups].T) * parts["scales"].float()[groups].T
