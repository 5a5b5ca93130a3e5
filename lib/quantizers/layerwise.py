"""Methods that need no calibration: layer after layer, each replaced as soon as its codes are there."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.quantizers import calibrate
from lib.quantizers.grid import Quantized


@torch.no_grad()
def replace_(model: nn.Module, method: Callable[[Tensor], Quantized]) -> dict[str, Quantized]:
    """Put `method(weight)` in the place of every linear layer inside the blocks of `model`; return all by layer name.

    weight: [rows, columns]. Each layer's weights go before the next layer's codes are made, so that no more is held
    than the model and what `method` needs for one layer.
    """
    done = {}
    for name in list(calibrate.layers(model)):  # names alone: a layer that is listed would stay in memory
        done[name] = method(model.get_submodule(name).weight)
        calibrate.replace_(model, {name: done[name]})
    calibrate.mark(model)
    return done
