"""AWQ: scales up the weight columns that meet large inputs before rounding, so that they lose less precision.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", arXiv 2306.00978.
Symbols are the paper's: W [rows, columns] the weights of layers that read the same inputs X, s > 0 one scale a column,
Q rounding to the nearest point of a group's grid. Q(W diag(s)) meets inputs diag(s)⁻¹ X, whose division costs nothing
because the norm or linear layer before does it (`lib.models.folds`).

One thing differs from the paper: the size of inputs is their root mean square (the Hessian's diagonal) instead of the
mean absolute value, which gives rare large inputs more weight. Scales are any positive numbers: powers of two would
fold without rounding even in bfloat16, but they are too coarse (packaged model, 4 bits, 4 windows of calibration and
test: the KL divergence is 0.153 with them and 0.131 without, of which the rounding of the fold is 0.002).
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from lib import files
from lib.jobs import JobState, Results, fingerprint
from lib.models import capture, equivalence, folds
from lib.models.blocks import blocks, path_of_blocks
from lib.models.folds import Fold, fold_
from lib.quantized.grid import Quantized, choose, dequantize, quantize
from lib.quantizers import calibrate, clip
from lib.sources import texts

STEPS = 20  # α from 0 to 1 (section 3.2 of the paper)
ROWS = 256  # rows whose errors choose α, evenly spaced: it is one number for hundreds of columns
WIDEST = 2.0**10  # of a scale, up and down: float16 weights stay finite


class Scaled(NamedTuple):
    """The result of the search for layers that read the same inputs.

    layers, source: full names; source is None where no layer before them can divide, which `reason` explains.
    scale: [channels of the source]. alpha: its exponent. errors: [STEPS + 1] tr(Δ H Δᵀ) for each α from 0 to 1.
    """

    layers: list[str]
    source: str | None
    scale: Tensor | None = None
    alpha: float = 0.0
    errors: Tensor | None = None
    reason: str = ""


def quantize_(
    model: nn.Module,
    calibration,
    *,
    bits: int,
    group_size: int,
    levels: str = "integer",
    state=None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """Scale, then quantize every linear layer inside the blocks of `model` on clipped ranges (`clip`), in place.

    Returns codes and grids by layer name. calibration: windows of text, or token ids [count, length]. bits: 2 to 8.
    group_size: columns per grid, -1 for a row. levels: of the grids, see `quantized.levels`. state: folder that keeps
    the scales of each group of layers and each finished block, so that a killed job resumes.
    """
    tokens = texts.tokens(calibration, model)
    grid = {"bits": bits, "group_size": group_size, "levels": levels}
    scales, clips = (None, None) if state is None else (Path(state) / "scales", Path(state) / "clips")
    scale_(model, tokens, **grid, state=scales, device=device)
    return clip.quantize_(model, tokens, **grid, state=clips, device=device)


@torch.no_grad()
def scale_(
    model: nn.Module,
    calibration,
    *,
    bits: int,
    group_size: int,
    levels: str = "integer",
    state=None,
    device: str | None = None,
) -> list[Scaled]:
    """Scale the columns of the linear layers of `model` in place and fold the inverse into the layers before them.

    The model stays an ordinary one with the same function, but its weights lose less when rounded to grids of `bits`
    and `group_size`. Arguments as for `quantize_`. Raises ValueError before the work for layers that can't take the
    grid, and for a model in which no layer passes a scale on.
    """
    grid = {"bits": bits, "group_size": group_size, "levels": levels}
    calibrate.check_layers(model, **grid)
    tokens = texts.tokens(calibration, model)
    calibrate.check_memory(model, tokens)
    found = _folds(model, tokens)
    keep = _Kept(state, model, tokens, device, **grid)
    of_layer = {name: fold for fold in found for name in fold.layers}
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {fold.layers[0]: [] for fold in found}

    def quantize_layer(names: list[str], weight: Tensor, hessian: Tensor) -> None:
        fold = of_layer[names[0]]
        if fold.source is not None:
            make = lambda: search(weight, hessian, fold, **grid)  # noqa: E731
            parts[fold.layers[0]].append(keep(names[0], make))

    with keep:
        calibrate.sequential(model, tokens, quantize_layer, device=device)
    answers = [_decide(fold, parts[fold.layers[0]]) for fold in found]
    _check_function(model, tokens, found, answers)
    for fold, answer in zip(found, answers):
        if fold.source is not None:
            fold_(model, fold, answer.scale)
    return answers


def _folds(model: nn.Module, tokens: Tensor) -> list[Fold]:
    """The folds of all blocks, with full names."""
    tokens = tokens[:1, : equivalence.LENGTH]
    calls, path = capture.capture(model, tokens).calls, path_of_blocks(model)
    found = []
    for index, (block, call) in enumerate(zip(blocks(model), calls)):
        found += [fold.inside(f"{path}.{index}") for fold in folds.find(model, block, call, tokens.shape[1])]
    if all(fold.source is None for fold in found):
        raise ValueError(
            f"no layer of {type(model).__name__} passes a scale on ({found[0].reason}); AWQ needs norms with weights "
            "or linear layers before the linear layers; use clip or gptq, which scale nothing."
        )
    return found


def _check_function(model: nn.Module, tokens: Tensor, found: list[Fold], answers: list[Scaled]) -> None:
    """Raise ValueError where these scales, folded into a block's weights, would change its function."""
    path, names = path_of_blocks(model), {block: index for index, block in enumerate(blocks(model))}

    def change_(block: nn.Module, trial: nn.Module) -> None:
        prefix = f"{path}.{names[block]}"
        for fold, answer in zip(found, answers):
            if fold.source is not None and fold.source.startswith(f"{prefix}."):
                fold_(trial, fold.outside(prefix), answer.scale)

    captured = capture.capture(model, tokens[:1, : equivalence.LENGTH])
    if different := equivalence.first_difference(model, captured, change_):
        raise ValueError(
            f"{path}.{different[0]} of {type(model).__name__} computes something else once its columns are scaled "
            f"(off by {different[1]:.2g} of what it adds); nothing was changed; use clip or gptq, which scale nothing."
        )


def search(
    weight: Tensor, hessian: Tensor, fold: Fold, *, bits: int, group_size: int, levels: str = "integer"
) -> tuple[Tensor, Tensor]:
    """Magnitude s_X [channels] and, for each α from 0 to 1, the error L(s_X^α) of equation 4, [STEPS + 1].

    ‖Q(W diag(s)) diag(s)⁻¹ X - W X‖² = tr(Δ H Δᵀ) / 2 · samples, Δ = Q(W diag(s)) diag(s)⁻¹ - W.
    """
    s_x = magnitude(fold.gather(hessian.diagonal()))
    rows = weight[:: -(-len(weight) // ROWS)].float()
    errors = []
    for alpha in torch.linspace(0, 1, STEPS + 1).tolist():
        s = fold.spread(scale(s_x, alpha))
        step, zero = choose(rows * s, bits=bits, group_size=group_size, levels=levels)
        rounded = dequantize(quantize(rows * s, step, zero, bits=bits), step, zero, bits=bits)
        change = rounded / s - rows
        errors.append(((change @ hessian) * change).sum())
    return s_x, torch.stack(errors)


def magnitude(power: Tensor) -> Tensor:
    """s_X, the size of the inputs in each channel: the root of `power`, their mean squares (up to a factor).

    The paper takes mean absolute values, which the Hessian does not hold. A channel that is always zero counts like
    the smallest one that isn't; all are 1 where every channel is zero.
    """
    alive = power > 0
    if not alive.any():
        return torch.ones_like(power)
    return torch.where(alive, power, power[alive].min()).sqrt()


def scale(s_x: Tensor, alpha: float) -> Tensor:
    """s = s_X^α (equation 5), divided by √(max s · min s), which centres it around 1."""
    exponent = alpha * s_x.log2()
    exponent = exponent - (exponent.max() + exponent.min()) / 2
    return exponent.exp2().clamp(1 / WIDEST, WIDEST)


def _decide(fold: Fold, parts: list[tuple[Tensor, Tensor]]) -> Scaled:
    """α* of equation 5 for layers that were searched in one or more `parts`, which share their inputs."""
    if fold.source is None:
        return Scaled(fold.layers, None, reason=fold.reason)
    errors = torch.stack([part for _, part in parts]).sum(0)
    alpha = int(errors.argmin()) / STEPS
    return Scaled(fold.layers, fold.source, scale(parts[0][0], alpha), alpha, errors)


class _Kept(Results):
    """Finished searches, one file each in the folder `state`, complete or absent."""

    def __init__(self, state, model: nn.Module, tokens: Tensor, device, **settings):
        super().__init__(state and JobState(state, method="awq", **fingerprint(model, tokens, device), **settings))

    def __call__(self, name: str, make) -> tuple[Tensor, Tensor]:
        """Read the search of the layer `name`, or run `make()` and save its result."""
        path = self.folder and self.folder / f"{name}.safetensors"
        if path and path.exists():
            done = load(path.read_bytes())
            return done["s_x"], done["errors"]
        s_x, errors = (part.cpu() for part in make())
        if path:
            files.write_bytes(path, save({"s_x": s_x, "errors": errors}))
        return s_x, errors
