"""Quantized models in AWQ's layout, which vLLM and others open; the codes are ours, whichever method chose them.

awq.export(model, tokenizer, folder)      # `column_layouts` says what it holds exactly
"""

from pathlib import Path

from torch import Tensor, nn

from lib.export import column_layouts
from lib.quantized.grid import Quantized


def export(model: nn.Module, tokenizer, folder: Path | str) -> Path:
    """Write `model`, whose layers of blocks have up to 4 bits, and `tokenizer`, complete or absent; returns `folder`.

    Raises ValueError for what the layout can't hold, naming what it can and what that costs, OSError as
    `folders.check`, before the work.
    """
    size = column_layouts.check(model, "AWQ", symmetric=False)
    settings = {
        "quant_method": "awq", "bits": column_layouts.BITS, "group_size": size, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    return column_layouts.write(model, tokenizer, folder, column_layouts.Layout(pack, settings), "awq")


def pack(matrix: Quantized) -> dict[str, Tensor]:
    """The stored tensors of a matrix."""
    codes, zeros, scales = column_layouts.grid(matrix)
    order = column_layouts.ORDER
    return {
        "qweight": column_layouts.packed(codes.T, order),
        "qzeros": column_layouts.packed(zeros.T, order),
        "scales": scales.T.contiguous(),
    }


def dense(parts: dict[str, Tensor]) -> Tensor:
    """The weights float32 [rows, columns] of the stored tensors."""
    order = column_layouts.ORDER
    codes, zeros = (column_layouts.unpacked(parts[key], order).float() for key in ("qweight", "qzeros"))
    size = len(codes) // len(zeros)
    values = (codes - zeros.repeat_interleave(size, 0)) * parts["scales"].float().repeat_interleave(size, 0)
    return values.T.contiguous()
