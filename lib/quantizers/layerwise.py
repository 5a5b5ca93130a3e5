"""Layer-by-layer quantization, for methods that need no calibration."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.jobs import JobState
from lib.models.blocks import blocks, linears, path_of_blocks
from lib.quantized import replace
from lib.quantized.grid import Quantized
from lib.quantizers import calibrate


@torch.no_grad()
def replace_(
    model: nn.Module, method: Callable[[Tensor], Quantized], *, state: JobState | None = None
) -> dict[str, Quantized]:
    """Replace every linear layer inside the blocks of `model` by `method(weight)`; return all results by layer name.

    weight: [rows, columns]. Each layer's weights are freed before the next layer is quantized, so that memory holds
    only the model and what `method` needs for one layer (and, with a state, the bytes of one block's file).
    state: keeps each finished block on disk, as in `calibrate.sequential`.
    """
    done, path = {}, path_of_blocks(model)
    with state or contextlib.nullcontext():
        for index, block in enumerate(blocks(model)):
            kept = state.load(index) if state else None
            if kept is not None:
                home = next(block.parameters()).device
                replace.replace_(block, kept)
                block.to(home)
            else:
                for name in list(linears(block)):  # names only: a list of layers would keep them in memory
                    quantized = method(block.get_submodule(name).weight)
                    replace.replace_(block, {name: quantized})
            found = {name: layer.quantized for name, layer in linears(block).items()}
            if state and kept is None:
                state.save(index, found)
            done |= {f"{path}.{index}.{name}": quantized for name, quantized in found.items()}
    calibrate.mark(model)
    return done
