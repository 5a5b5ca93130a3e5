"""GPTQ followed by SignRound: starts from GPTQ's codes and learns, block by block, which of them to change.

GPTQ chooses a layer's codes one column after another and never revises one; it minimises the error of that layer's own
outputs. SignRound minimises the error of the whole block's outputs over all its layers at once, but takes small steps
and so depends on its starting point. The combination: in each block first GPTQ, on inputs from the finished blocks
before it, then SignRound's offsets V and ranges α, β, starting from GPTQ's codes.

Better initial codes hardly improve the result. On the packaged model (32 windows of WikiText-2, 30 steps), in nats per
token: at 2 bits 0.747 ± 0.024 from GPTAQ's codes and 0.748 ± 0.024 from GPTQ's; at 4 bits 0.0586 ± 0.0018 from those of
the corrected target (`corrected`) and 0.0604 ± 0.0020 from GPTQ's, in a third more time. The inherited error that those
methods cancel, SignRound learns to cancel as well, since its target is the original block's outputs on the original's
inputs.

Sources: GPTQ, arXiv 2210.17323 (`gptq`); SignRound, arXiv 2309.05516 (`signround`).
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib import timing
from lib.jobs import JobState, fingerprint
from lib.models import capture
from lib.models.blocks import linears
from lib.models.reference import digest
from lib.quantized.grid import Quantized
from lib.quantizers import calibrate, gptq, signround
from lib.sources import texts

Bits = int | dict[str, int]  # of all layers alike, or by layer name


def quantize_(
    model: nn.Module,
    calibration,
    bits: Bits,
    *,
    group_size: int,
    levels: str = "integer",
    steps: int | Callable[[str], int] = 50,
    batch: int = 2,
    rate: float | None = None,
    range_rate: float | None = None,
    filtered: float = 0.001,
    seed: int = 0,
    clean: Tensor | None = None,
    state=None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """Quantize every linear layer inside the blocks of `model`, in place; return the codes and grids by layer name.

    calibration: windows of text, or token ids [count, length]. bits: 2 to 8, or a dict of them by layer name.
    group_size: columns per grid, -1 for a row. levels: of the grids, see `quantized.levels`. steps, batch, rate,
    range_rate, filtered: of `signround.quantize_`; 0 steps leave GPTQ's codes. steps may be a function of a block's
    name, called before each block, which must return the same number in a resumed job. clean: of
    `calibrate.sequential_blocks`. state: folder that keeps finished blocks, so that a killed job resumes.
    """
    tokens = texts.tokens(calibration, model)
    options = {"batch": batch, "rate": rate, "range_rate": range_rate, "filtered": filtered, "seed": seed}
    grid = {"group_size": group_size, "levels": levels}
    plan, options = check(model, tokens, bits, **grid, steps=steps, **options)
    ask = steps if callable(steps) else lambda _: steps
    learning = _settle(len(tokens), 1 if callable(steps) else steps, options)
    if state is not None:
        job = _given(bits, plan, clean) | (options | {"steps": "by block"} if callable(steps) else learning)
        state = JobState(state, method="gptq_signround", **grid, **fingerprint(model, tokens, device), **job)

    def quantize_block(
        prefix: str, block: nn.Module, hidden: Tensor, targets: Tensor, call: tuple
    ) -> dict[str, Quantized]:
        learning = _settle(len(tokens), ask(prefix), options)
        starts = first(block, hidden, call, prefix, plan, group_size, levels)
        if not learning["steps"]:
            return starts
        done, _ = signround.reconstruct(block, hidden, targets, call, starts, **learning)
        return {name: layer.quantized() for name, layer in done.items()}

    return calibrate.sequential_blocks(model, tokens, quantize_block, clean=clean, state=state, device=device)


def check(
    model: nn.Module,
    tokens: Tensor,
    bits: Bits,
    *,
    group_size: int,
    levels: str = "integer",
    steps: int | Callable[[str], int] = 50,
    **learning,
) -> tuple[dict[str, int], dict]:
    """Bits by layer name and the `learning` of `quantize_`; raises its errors for arguments, before any work."""
    plan = widths(model, bits)
    calibrate.check_layers(model, bits=plan, group_size=group_size, levels=levels, paired=True)
    calibrate.check_memory(model, tokens, streams=2)
    options = {"batch": 2, "rate": None, "range_rate": None, "filtered": 0.001, "seed": 0} | learning
    options["batch"] = min(options["batch"], len(tokens))
    _settle(len(tokens), 1 if callable(steps) else steps, options)
    return plan, options


def _given(bits: Bits, plan: dict[str, int], clean: Tensor | None) -> dict:
    """Hashes of arguments that are too long to be written into a state."""
    told = bits if isinstance(bits, int) else hashlib.sha256(repr(sorted(plan.items())).encode()).hexdigest()
    return {"bits": told} | ({} if clean is None else {"clean": digest(clean)})


def _settle(windows: int, steps: int, options: dict) -> dict:
    return signround.settle(windows, steps=steps, **options) if steps else {"steps": 0} | options


@torch.no_grad()
def first(
    block: nn.Module, hidden: Tensor, call: tuple, prefix: str, plan: dict[str, int], group_size: int, levels="integer"
) -> dict[str, Quantized]:
    """GPTQ's codes for the layers of `block` by their names in it; the block's weights stay as they are."""
    weights = {layer: layer.weight.detach().clone() for layer in linears(block).values()}

    def quantize_shared(names: list[str], weight: Tensor, seen: Tensor) -> Quantized:
        bits = plan[f"{prefix}.{names[0]}"]
        return gptq.gptq(weight, capture.second_moment(seen), bits=bits, group_size=group_size, levels=levels)

    try:
        return calibrate.quantize_layers(block, hidden, call, prefix, quantize_shared)[1]
    finally:
        for layer, weight in weights.items():
            layer.weight.copy_(weight)


def seconds(model: nn.Module, tokens: Tensor, *, group_size: int, batch: int = 2) -> tuple[float, float]:
    """Seconds of a block without training and without its passes over the windows, and seconds of a training step.

    Timed on the first block of `model`, which is not changed: the times of GPTQ and of evaluating the learned codes do
    not depend on the number of windows.
    """
    captured = capture.capture(model, tokens[: max(batch, signround.SEEN)])
    block, prefix = calibrate.blocks(model)[0], f"{calibrate.path_of_blocks(model)}.0"
    hidden, call = captured.hidden, captured.calls[0]
    with torch.no_grad():
        targets = capture.run_block(block, hidden, call)
    options = {"rate": None, "range_rate": None, "filtered": 0.001, "seed": 0}
    learning = signround.settle(len(hidden), steps=1, batch=batch, **options)
    plan = widths(model, 4)
    with timing.stopwatch() as codes:
        starts = first(block, hidden, call, prefix, plan, group_size)
    layers = {
        name: signround.SignRoundWeight(block.get_submodule(name).weight, start) for name, start in starts.items()
    }
    signround.learn_(
        layers, block, hidden, targets, call, **learning
    )  # the first step also loads what later ones reuse
    with timing.stopwatch() as step:
        signround.learn_(layers, block, hidden, targets, call, **learning)
    with timing.stopwatch() as whole:
        signround.reconstruct(block, hidden, targets, call, starts, **learning)
    return codes.seconds + max(0.0, whole.seconds - step.seconds), step.seconds


def widths(model: nn.Module, bits: Bits) -> dict[str, int]:
    """Bits by layer name, in the order of the blocks; ValueError when a dict lacks a layer inside them."""
    names = calibrate.layers(model)
    plan = {n: bits[n] for n in names if n in bits} if isinstance(bits, dict) else dict.fromkeys(names, bits)
    if missing := sorted(names.keys() - plan.keys()):
        raise ValueError(
            f"bits name {len(plan)} of {len(names)} layers, {missing[0]} is missing; all layers inside the blocks need "
            "them; give one number for all, or add the layer."
        )
    return plan
