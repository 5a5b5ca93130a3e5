"""SignRound: learn for each weight whether to round it up or down, and for each group how wide its range is.

The nearest code is best for a single weight, but not for the outputs of its block, where the errors of many weights may
cancel. So each block's outputs are compared with the original's, and an offset V for every weight and the ends α and β
of every group's range are moved against the sign of their gradients: a code is at most half a step away from changing,
however large its gradient. `signround_layer` computes the weights from V, α and β.

Source: Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs",
arXiv 2309.05516. Three things differ from the paper, each because it measured better: training starts from searched
ranges or from another method's codes; V moves half as fast; and the ends of the ranges move slower still, since moving
a range changes all its codes.
"""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lib.jobs import JobState, fingerprint
from lib.models import attention, capture
from lib.models.blocks import linears
from lib.quantized import pairs
from lib.quantized.grid import Quantized, choose, fitted, quantize
from lib.quantizers import calibrate
from lib.quantizers.signround_layer import SignRoundWeight
from lib.quantizers.signround_pairs import SignRoundPairs
from lib.sources import texts

Weight = SignRoundWeight | SignRoundPairs
SEEN = 4  # windows that weight the columns in the search for ranges, and that test whether training helped
TRAVEL = 0.5  # rate of V in the first step times the steps: half of it, a quarter of a code, is the farthest V gets
RANGES = 0.1  # the same for α and β


def quantize_(
    model: nn.Module,
    calibration,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = False,
    levels: str = "integer",
    candidates: int = 8,
    steps: int = 50,
    batch: int = 2,
    rate: float | None = None,
    range_rate: float | None = None,
    filtered: float = 0.001,
    initial: dict[str, Quantized] | None = None,
    seed: int = 0,
    state=None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """Quantize every linear layer inside the blocks of `model`, in place; return the codes and grids by layer name.

    calibration: windows of text, or token ids [count, length]. bits: 2 to 8. group_size: columns per grid, -1 for a
    row. levels: of the grids, see `quantized.levels`. candidates: ranges tried per group before learning. steps:
    updates per block, each from `batch` windows. rate: how far V moves in the first step, falling linearly to zero;
    None is `TRAVEL` / steps. range_rate: the same for α and β; None is `RANGES` / steps. filtered: share of the squared
    errors, the largest ones, that the loss ignores. initial: codes and affine grids of all layers to start from, as
    another method returned them for a copy of this model; `symmetric`, `levels` and `candidates` are then ignored.
    state: folder that keeps finished blocks, so that a killed job resumes.
    """
    calibrate.check_layers(
        model, bits=bits, group_size=group_size, candidates=candidates, symmetric=symmetric, levels=levels
    )
    tokens = texts.tokens(calibration, model)
    learning = {"steps": steps, "batch": batch, "rate": rate, "range_rate": range_rate}
    learning = settle(len(tokens), **learning, filtered=filtered, seed=seed)
    check_initial(model, initial, bits, group_size)
    calibrate.check_memory(model, tokens, streams=2)
    grid = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "levels": levels, "candidates": candidates}
    if state is not None:
        job = {**fingerprint(model, tokens, device), **grid, **learning, "initial": digest(initial)}
        state = JobState(state, method="signround", **job)
    return calibrate.sequential_blocks(
        model, tokens, _quantize_block(initial, grid, learning), state=state, device=device
    )


def _quantize_block(initial: dict[str, Quantized] | None, grid: dict, learning: dict) -> calibrate.QuantizeBlock:
    def quantize_block(
        prefix: str, block: nn.Module, hidden: Tensor, targets: Tensor, call: tuple
    ) -> dict[str, Quantized]:
        starts = nearest(block, hidden[:SEEN], call, **grid)
        if initial is not None:
            starts = {name: initial[f"{prefix}.{name}"] for name in starts}
        layers, _ = reconstruct(block, hidden, targets, call, starts, **learning)
        return {name: layer.quantized() for name, layer in layers.items()}

    return quantize_block


@torch.no_grad()
def nearest(block: nn.Module, hidden: Tensor, call: tuple, **grid) -> dict[str, Quantized]:
    """Each layer of `block` rounded to nearest, on ranges searched for its inputs under `hidden`."""
    parts, starts = linears(block), {}
    _, seen = capture.record(block, parts, hidden, call)
    if missing := sorted(parts.keys() - seen.keys()):
        raise ValueError(f"the block never ran {', '.join(missing)}; {calibrate.ROUTED}")
    for name, layer in parts.items():
        importance = seen.pop(name).flatten(0, -2).float().square().mean(0)
        scale, zero = choose(layer.weight, importance=importance, **grid)
        codes = quantize(layer.weight, scale, zero, bits=grid["bits"])
        size = codes.shape[1] // scale.shape[1]
        starts[name] = Quantized(codes, scale, zero, grid["bits"], size, levels=grid.get("levels", "integer"))
    return starts


@torch.no_grad()
def reconstruct(
    block: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    call: tuple,
    starts: dict[str, Quantized],
    make: Callable | None = None,
    **learning,
) -> tuple[dict[str, Weight], list[float]]:
    """Learn to round the layers of `block` named in `starts`; return them and the loss of each step's windows.

    hidden, targets: the block's inputs and target outputs, [count, length, hidden size]. call: its other
    arguments. make: the class of learned weights if not that of the start. learning: those of `learn_`. The
    block itself is not changed. The learning rate falls to zero, so the last state is kept (the lowest loss only
    belongs to the easiest windows), unless the first `SEEN` windows had a lower loss before training.
    """

    def begin() -> dict[str, Weight]:
        kinds = {name: make or _kind(each) for name, each in starts.items()}
        return {name: kinds[name](block.get_submodule(name).weight, start) for name, start in starts.items()}

    def judge(layers: dict[str, Weight]) -> float:
        first = hidden[:SEEN], targets[:SEEN]
        return sum(window_losses(block, layers, *first, call, filtered=learning["filtered"]))

    layers = begin()
    before = judge(layers)
    losses = learn_(layers, block, hidden, targets, call, **learning)
    return (layers if judge(layers) <= before else begin()), losses


def _kind(start: Quantized) -> type[Weight]:
    return SignRoundPairs if start.levels == pairs.LEVELS else SignRoundWeight


def learn_(
    layers: dict[str, Weight], block, hidden, targets, call, *, steps, batch, rate, range_rate, filtered, seed
) -> list[float]:
    """Train V, α and β of `layers`, in place, with the settings of `quantize_`; return the losses."""
    generator, waiting, losses = torch.Generator().manual_seed(seed), [], []
    for step in range(steps):
        if len(waiting) < batch:
            waiting = torch.randperm(len(hidden), generator=generator).tolist()
        chosen, waiting = waiting[:batch], waiting[batch:]
        with torch.enable_grad(), attention.fast():
            outputs = run(block, layers, hidden[chosen], call)
            loss, gradient = distance(outputs.detach(), targets[chosen], filtered)
            gradients = torch.autograd.grad(outputs, [layer.dense for layer in layers.values()], gradient)
        if not math.isfinite(loss):
            raise ValueError(
                f"the block's outputs differ by {loss} from the original's at step {step + 1} of {steps}; they must be "
                "finite; check the model and the calibration text for NaN."
            )
        losses.append(loss)
        left = 1 - step / steps
        for layer, gradient in zip(layers.values(), gradients):
            layer.step_(gradient, rate * left, range_rate * left)
    return losses


def run(block: nn.Module, layers: dict[str, Weight], hidden: Tensor, call: tuple) -> Tensor:
    """Outputs of `block` with its weights replaced by the rounded ones of `layers`."""
    weights = {f"{name}.weight": layer.dense for name, layer in layers.items()}
    return capture.run_block(lambda *args, **options: functional_call(block, weights, args, options), hidden, call)


@torch.no_grad()
def window_losses(block, layers, hidden, targets, call, *, filtered: float) -> list[float]:
    """`distance` of each window's outputs from its targets, with `layers` as they are now."""
    pairs = zip(hidden.split(1), targets.split(1), strict=True)
    return [distance(run(block, layers, window, call), wanted, filtered)[0] for window, wanted in pairs]


def distance(outputs: Tensor, targets: Tensor, filtered: float) -> tuple[float, Tensor]:
    """Mean squared error without the share `filtered` of largest squares, and its gradient by `outputs`.

    A few features of a few tokens have squared errors a thousand times the others', which would dominate training.
    """
    error = outputs.float() - targets
    if count := int(filtered * error.numel()):
        limit = error.abs().flatten().topk(count, sorted=False).values.min()
        error.masked_fill_(error.abs() >= limit, 0)
    return error.square().mean().item(), error.mul_(2 / error.numel()).to(outputs.dtype)


def settle(windows: int, *, steps, batch, rate, range_rate, filtered, seed) -> dict:
    """These settings with default rates in place of None; ValueError where they don't suit so many windows."""
    if steps < 1 or not 1 <= batch <= windows:
        raise ValueError(
            f"steps={steps} and batch={batch} with {windows} windows; there must be 1 or more steps, and 1 to "
            f"{windows} windows in a batch; change them, or give more windows."
        )
    rate = TRAVEL / steps if rate is None else rate
    range_rate = RANGES / steps if range_rate is None else range_rate
    for name, value in {"rate": rate, "range_rate": range_rate}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}; V, α and β move by 0 to 1 in a step; try the default, None.")
    if not 0 <= filtered < 1:
        raise ValueError(f"filtered={filtered} of the squared errors; a share from 0 to below 1 is allowed; try 0.001.")
    return dict(steps=steps, batch=batch, rate=rate, range_rate=range_rate, filtered=filtered, seed=seed)


def check_initial(model: nn.Module, initial: dict[str, Quantized] | None, bits: int, group_size: int) -> None:
    """Raise ValueError unless `initial` holds codes on such affine grids for every layer inside the blocks."""
    if initial is None:
        return
    layers = calibrate.layers(model)
    if missing := sorted(layers.keys() - initial.keys()):
        raise ValueError(
            f"initial lacks {len(missing)} of {len(layers)} layers, {missing[0]} first; it needs all of them; "
            "give what a quantizer returned for a copy of this model."
        )
    for name, layer in layers.items():
        start, size = initial[name], fitted(layer.in_features, bits=bits, group_size=group_size)
        if start.codes.shape != layer.weight.shape or (start.bits, start.group_size) != (bits, size):
            given = f"{tuple(start.codes.shape)}, {start.bits} bits, groups of {start.group_size}"
            wanted = f"{tuple(layer.weight.shape)}, {bits} bits, groups of {size}"
            raise ValueError(
                f"initial gives {given} for {name}; {wanted} is needed; quantize a copy with these settings."
            )
        if start.codebook is not None:
            raise ValueError(
                f"initial gives {name} on a codebook; only affine grids have ranges; start from gptq or rtn."
            )


def digest(initial: dict[str, Quantized] | None) -> str | None:
    """SHA-256 of codes and grids, for the fingerprint of a job."""
    if initial is None:
        return None
    hasher = hashlib.sha256()
    for name in sorted(initial):
        codes, scale, zero, *_, levels = initial[name]
        hasher.update(f"{name} {levels}".encode())
        for part in (codes, scale.view(torch.int16), zero):
            hasher.update(b"none" if part is None else part.cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()
