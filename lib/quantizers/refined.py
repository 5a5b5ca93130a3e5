"""GPTQ's codes, refined block by block: where a code is a step away from the best one for the block, it moves.

GPTQ chooses a layer's codes one column after another and never returns to one; it minimises the error of that layer's
own outputs. SignRound looks at what the whole block answers, with all its layers at once, but takes short steps and so
depends on where it starts. Together each does what the other can't: per block, GPTQ first, on inputs that come from
the finished blocks before it, then offsets V and ranges α, β from GPTQ's codes on.

Sources: GPTQ, arXiv 2210.17323 (`gptq`); SignRound, arXiv 2309.05516 (`rounding`).
"""

import hashlib

import torch
from torch import Tensor, nn

from lib.metrics import speed
from lib.models.blocks import linears
from lib.quantizers import calibrate, gptq, inputs, rounding
from lib.quantizers.grid import Quantized
from lib.quantizers.state import State, fingerprint

Bits = int | dict[str, int]  # of all layers alike, or by layer name


def quantize_(
    model: nn.Module,
    calibration,
    bits: Bits,
    *,
    group_size: int,
    steps: int = 50,
    batch: int = 2,
    rate: float | None = None,
    range_rate: float | None = None,
    filtered: float = 0.001,
    seed: int = 0,
    state=None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """Quantize every linear layer inside the blocks of `model`, in place; return the codes and grids by layer name.

    calibration: windows of text, or token ids [count, length]. bits: 2 to 8, or a dict of them by layer name.
    group_size: columns per grid, -1 for a row. steps, batch, rate, range_rate, filtered: of `rounding.quantize_`;
    no steps leave GPTQ's codes. state: folder that keeps finished blocks, so that a killed job resumes.
    """
    from lib.sources import texts

    calibrate.check_layers(model, bits=min(bits.values()) if isinstance(bits, dict) else bits, group_size=group_size)
    plan = widths(model, bits)
    tokens = texts.tokens(calibration, model)
    calibrate.check_memory(model, tokens, streams=2)
    learning = {"steps": steps, "batch": min(batch, len(tokens)), "rate": rate, "range_rate": range_rate}
    if steps:
        learning = rounding.settle(len(tokens), **learning, filtered=filtered, seed=seed)
    if state is not None:
        told = bits if isinstance(bits, int) else hashlib.sha256(repr(sorted(plan.items())).encode()).hexdigest()
        job = {**fingerprint(model, tokens), **learning, "bits": told, "group_size": group_size}
        state = State(state, method="refined", **job)

    def visit(prefix: str, block: nn.Module, hidden: Tensor, targets: Tensor, call: tuple) -> dict[str, Quantized]:
        starts = first(block, hidden, call, prefix, plan, group_size)
        if not steps:
            return starts
        done, _ = rounding.reconstruct(block, hidden, targets, call, starts, **learning)
        return {name: layer.quantized() for name, layer in done.items()}

    return calibrate.walk_blocks(model, tokens, visit, state=state, device=device)


@torch.no_grad()
def first(
    block: nn.Module, hidden: Tensor, call: tuple, prefix: str, plan: dict[str, int], group_size: int
) -> dict[str, Quantized]:
    """GPTQ's codes for the layers of `block` by their names in it; the block's weights stay as they are."""
    weights = {layer: layer.weight.detach().clone() for layer in linears(block).values()}

    def look(names: list[str], weight: Tensor, seen: Tensor) -> Quantized:
        bits = plan[f"{prefix}.{names[0]}"]
        return gptq.gptq(weight, inputs.second_moment(seen), bits=bits, group_size=group_size)

    try:
        return calibrate.visit_layers(block, hidden, call, prefix, look)[1]
    finally:
        for layer, weight in weights.items():
            layer.weight.copy_(weight)


def seconds_per_step(model: nn.Module, tokens: Tensor, *, group_size: int, batch: int = 2) -> float:
    """Seconds that one step takes in all blocks together, tried on the first block of `model`, which stays as it is."""
    captured = inputs.capture(model, tokens[:batch])
    block = calibrate.blocks(model)[0]
    hidden, call = captured.hidden, captured.calls[0]
    with torch.no_grad():
        targets = inputs.run_block(block, hidden, call)
        starts = rounding.nearest(block, hidden, call, bits=4, group_size=group_size, symmetric=False, candidates=1)
    learning = rounding.settle(
        len(hidden), steps=1, batch=len(hidden), rate=None, range_rate=None, filtered=0.001, seed=0
    )
    layers = {name: rounding.Rounded(block.get_submodule(name).weight, start) for name, start in starts.items()}
    rounding.learn_(layers, block, hidden, targets, call, **learning)  # the first step also loads what later ones reuse
    with speed.stopwatch() as watch:
        rounding.learn_(layers, block, hidden, targets, call, **learning)
    return watch.seconds * len(calibrate.blocks(model))


def widths(model: nn.Module, bits: Bits) -> dict[str, int]:
    """Bits by layer name, in the order of the blocks; ValueError when a dict lacks a layer inside them."""
    names = calibrate.layers(model)
    plan = dict.fromkeys(names, bits) if isinstance(bits, int) else {n: bits[n] for n in names if n in bits}
    if missing := sorted(names.keys() - plan.keys()):
        raise ValueError(
            f"bits name {len(plan)} of {len(names)} layers, {missing[0]} is missing; all layers inside the blocks need "
            "them; give one number for all, or add the layer."
        )
    return plan
