"""What is checked before a model is quantized: its layers, their grids, and the memory that this takes."""

from collections import Counter

import psutil
from torch import Tensor, nn

from lib.models.blocks import config, linears, path_of_blocks, refuse_adapters
from lib.quantized import pairs
from lib.quantized.grid import check, check_candidates, check_finite
from lib.quantized.levels import check as check_levels


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers inside the blocks, by their full name in the model, in the order of the blocks."""
    path = path_of_blocks(model)
    return {f"{path}.{name}": layer for name, layer in linears(model.get_submodule(path)).items()}


def check_layers(
    model: nn.Module,
    *,
    bits: int | dict[str, int],
    group_size: int,
    symmetric=False,
    levels="integer",
    candidates=1,
    paired=False,
) -> None:
    """Raise ValueError before the work when a layer inside the blocks can't take this grid or a weight is no number.

    A matrix that is narrower than a group because it acts on a part of the stream, on one head say, gets one group a
    row, and a line that tells so. paired: whether the method has grids of pairs too.
    """
    check_candidates(candidates)
    both = paired and levels == pairs.LEVELS
    check_levels("integer" if both else levels, symmetric)
    refuse_adapters(model)
    narrow, width = Counter(), config(model).hidden_size
    for name, layer in layers(model).items():
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"{name} is a {type(layer).__name__} already; load the original model and quantize that.")
        columns, wanted = layer.in_features, bits[name] if isinstance(bits, dict) else bits
        if isinstance(group_size, int) and columns < min(group_size, width):
            check(columns, bits=wanted, group_size=-1, name=name)
            narrow[columns] += 1
        else:
            check(columns, bits=wanted, group_size=group_size, name=name)
        if both:
            pairs.check(wanted, group_size if columns >= width else -1, columns, name)
    for columns, count in narrow.items():
        print(f"{count} matrices of {columns} columns are narrower than group_size={group_size}: one group a row")
    check_finite(model)


def check_memory(model: nn.Module, tokens: Tensor, *, streams: int = 1) -> None:
    """Raise MemoryError before the work when the activations of one block would not fit into the machine's memory.

    All windows pass through a block at once: its inputs and outputs, and about four tensors as wide as its widest
    layer (gate, up, their product, the attention's parts), are alive together. streams: 2 where the original's
    activations are kept beside them.
    """
    widest = max(max(layer.in_features, layer.out_features) for layer in layers(model).values())
    size = model.dtype.itemsize
    needed = streams * tokens.numel() * (2 * config(model).hidden_size + 4 * widest) * size
    free = psutil.virtual_memory().available
    if needed > free:
        raise MemoryError(
            f"{len(tokens)} windows of {tokens.shape[1]} tokens need about {needed / 1e9:.1f} GB beside the model and "
            f"{free / 1e9:.1f} GB are free; use about {max(1, int(len(tokens) * free / needed))} windows or fewer."
        )
