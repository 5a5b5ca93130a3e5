"""Block-wise training of all weights and scales (Block-AP), before anything is trained end to end.

Each block is trained alone to give the original block's outputs, on inputs from the finished blocks before it: the
latent weights and the scales of its linear layers by `lsq_linear`, with Adam and a rate that falls as a cosine. Unlike
SignRound a weight may move by more than half a step of its grid, and it moves in proportion to its gradient.

Source: Chen et al., "EfficientQAT: Efficient Quantization-Aware Training for Large Language Models", arXiv 2407.11062,
section 3.2. Zero points stay as the start has them; rates are in steps of the grid, as everywhere here.
"""

import contextlib
import math

import torch
from torch import Tensor, nn

from lib.distillation.lsq_linear import LSQLinear
from lib.jobs import JobState, fingerprint
from lib.models import attention, capture
from lib.models.blocks import linears
from lib.quantized.grid import Quantized
from lib.quantized.linear import QuantLinear
from lib.quantizers import calibrate, signround
from lib.sources import texts
from lib.trainers.schedule import Order, schedule


def quantize_(
    model: nn.Module,
    calibration,
    *,
    bits: int,
    group_size: int,
    levels: str = "integer",
    candidates: int = 8,
    steps: int = 64,
    batch: int = 2,
    learning_rate: float = 4e-3,
    code_steps: float = 4e-3,
    seed: int = 0,
    state=None,
) -> dict[str, Quantized]:
    """Quantize every linear layer inside the blocks of `model`, in place; return the codes and grids by layer name.

    calibration: windows of text, or token ids [count, length]. bits, group_size, levels, candidates: of the grids that
    training begins with, chosen as by `signround.nearest`. steps: of each block, on `batch` windows. learning_rate: of
    the scales' relative change at its peak; code_steps: of the latents, in steps of the grid. state: folder that keeps
    finished blocks, so that a killed job resumes. Raises ValueError for numbers out of range and a loss that is not
    finite.
    """
    calibrate.check_layers(model, bits=bits, group_size=group_size, levels=levels, candidates=candidates)
    tokens = texts.tokens(calibration, model)
    if steps < 1 or not 1 <= batch <= len(tokens) or not (learning_rate > 0 and 0 < code_steps < math.inf):
        raise ValueError(
            f"steps={steps}, batch={batch} of {len(tokens)} windows, learning_rate={learning_rate}, "
            f"code_steps={code_steps}; 1 step or more, 1 to all windows and rates above 0 are allowed; change them."
        )
    calibrate.check_memory(model, tokens, streams=2)
    grid = {"bits": bits, "group_size": group_size, "levels": levels, "candidates": candidates}
    learning = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "code_steps": code_steps, "seed": seed}
    if state is not None:
        state = JobState(state, method="block_wise", **fingerprint(model, tokens), **grid, **learning)

    def quantize_block(prefix: str, block: nn.Module, hidden: Tensor, targets: Tensor, call: tuple):
        starts = signround.nearest(block, hidden[: signround.SEEN], call, **grid)
        return trained(block, hidden, targets, call, starts, prefix, **learning)

    return calibrate.sequential_blocks(model, tokens, quantize_block, state=state)


def trained(
    block: nn.Module, hidden: Tensor, targets: Tensor, call: tuple, starts: dict[str, Quantized], prefix: str, *,
    steps: int, batch: int, learning_rate: float, code_steps: float, seed: int,
) -> dict[str, Quantized]:  # fmt: skip
    """What `starts` became when `block` learned to give `targets`; the block itself is left as it was."""
    order = Order(len(hidden), seed)
    with torch.enable_grad(), attention.fast(), _replaced(block, starts, code_steps / learning_rate) as parts:
        learned = [parameter for part in parts.values() for parameter in part.learned().values()]
        optimizer = torch.optim.Adam(learned, lr=learning_rate)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * schedule(step, steps)
            chosen = [order[place] for place in range(step * batch, (step + 1) * batch)]
            outputs = capture.run_block(block, hidden[chosen], call)
            loss, gradient = signround.distance(outputs.detach(), targets[chosen], 0.001)
            if not math.isfinite(loss):
                raise ValueError(f"the loss of {prefix} is {loss} at step {step + 1}; use a smaller learning_rate.")
            found = torch.autograd.grad(outputs, learned, gradient)
            for parameter, each in zip(learned, found):
                parameter.grad = each
            optimizer.step()
        for part in parts.values():
            part.settle_()
        return {name: part.layer.quantized for name, part in parts.items()}


@contextlib.contextmanager
def _replaced(block: nn.Module, starts: dict[str, Quantized], code_rate: float):
    """Context in which layers of `block` are trained ones; they go back afterwards."""
    layers, dtype = linears(block), next(block.parameters()).dtype
    parts = {
        name: LSQLinear(QuantLinear(start, layers[name].bias), dtype, code_rate=code_rate, original=layers[name].weight)
        for name, start in starts.items()
    }
    try:
        for name, part in parts.items():
            block.set_submodule(name, part)
        yield parts
    finally:
        for name in parts:
            block.set_submodule(name, layers[name])
