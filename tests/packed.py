"""Quantized tiny models for tests of packed checkpoints."""

import torch

from lib.models.blocks import blocks, linears
from lib.quantized import grid
from lib.quantized.grid import Quantized
from lib.quantized.linear import QuantLinear


def matrix(weight, bits, group_size, symmetric=False, levels="integer"):
    group_size = group_size if weight.shape[1] % group_size == 0 else -1  # a row, of layers as narrow as a head
    scale, zero = grid.choose(weight, bits=bits, group_size=group_size, symmetric=symmetric, levels=levels)
    size = weight.shape[1] if group_size == -1 else group_size
    return Quantized(grid.quantize(weight, scale, zero, bits=bits), scale, zero, bits, size, levels=levels)


def quantize_(model, choose=lambda name: (4, 32, False), dtype=torch.bfloat16):
    """Round every linear inside the blocks to the grid (the arguments of `matrix`) that `choose` gives its name."""
    for index, block in enumerate(blocks(model)):
        for name, layer in linears(block).items():
            found = matrix(layer.weight.detach(), *choose(f"{index}.{name}"))
            block.set_submodule(name, QuantLinear(found, layer.bias))
    for parameter in model.parameters():  # .to(dtype) would round the rotary frequencies too
        parameter.data = parameter.data.to(dtype)
    return model
