"""Trains the steps of llama.cpp's types end to end (`e2e_qp`): codes stay, half-precision steps learn to predict.

Types whose groups have one half-precision step and nothing else take part (Q2_0, Q4_0, Q5_0, Q8_0); the other matrices
of the model stay as they are. While it trains, d (q - c) with a negative d is |d| ((top - q) - (top - c)).
"""

import torch
from torch import nn

from lib.quantized import gguf_types
from lib.quantized.gguf_types import Blocks, Grid
from lib.quantized.grid import Quantized
from lib.quantized.linear import QuantLinear
from lib.quantizers import calibrate, e2e_qp

TYPES = ("Q2_0", "Q4_0", "Q5_0", "Q8_0")


@torch.no_grad()
def as_quantized(matrix: Blocks) -> Quantized:
    """The same numbers with positive steps, in half precision, and zero points."""
    grid, codes = matrix.unpack()
    top, centre = len(grid.levels) - 1, -int(grid.levels[0])
    turned = grid.step < 0
    wide = turned.repeat_interleave(codes.shape[1] // turned.shape[1], 1)
    zero = torch.where(turned, top - centre, centre).to(torch.uint8)
    bits = (top + 1).bit_length() - 1
    codes = torch.where(wide, top - codes, codes)
    return Quantized(codes, grid.step.abs().to(torch.float16), zero, bits, gguf_types.TYPES[matrix.kind].group)


@torch.no_grad()
def as_blocks(quantized: Quantized, kind: str) -> Blocks:
    """The inverse of `as_quantized`."""
    levels = gguf_types.TYPES[kind].levels
    top, turned = len(levels) - 1, quantized.zero_point != -int(levels[0])
    wide = turned.repeat_interleave(quantized.codes.shape[1] // turned.shape[1], 1)
    codes = torch.where(wide, top - quantized.codes, quantized.codes)
    step = torch.where(turned, -quantized.scale.float(), quantized.scale.float())
    return Blocks(kind, gguf_types.TYPES[kind].pack(Grid(step, None, levels, {"d": step}), codes))


def tune_(model: nn.Module, calibration, reference, found: dict[str, Blocks], **options) -> dict[str, Blocks]:
    """Train the steps of the matrices `found` inside the blocks of `model`, in place; returns all matrices anew.

    found: what `aimed.quantize_` returned for this model. calibration, reference and the `options` (steps, batch,
    learning_rate, seed, state, ...) are those of `e2e_qp.tune_`. Raises ValueError where no matrix has such a type.
    """
    plain = {name: layer for name, layer in calibrate.layers(model).items() if name in found}
    plain = {name: layer for name, layer in plain.items() if found[name].kind in TYPES}
    if not plain:
        raise ValueError(
            f"no layer has one of the types {', '.join(TYPES)}, whose steps can be trained; aim at one of them, or "
            "leave the training out."
        )
    try:
        for name, layer in plain.items():
            model.set_submodule(name, QuantLinear(as_quantized(found[name]), layer.bias))
        e2e_qp.tune_(model, calibration, reference, **options)
        done = {name: as_blocks(model.get_submodule(name).quantized, found[name].kind) for name in plain}
    finally:
        for name, layer in plain.items():
            model.set_submodule(name, layer)
    with torch.no_grad():
        for name, matrix in done.items():
            plain[name].weight.copy_(matrix.dense())
    return found | done
