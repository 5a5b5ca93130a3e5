"""Bit allocation: the bit widths of all layers with the least divergence within a budget of bytes.

The losses of different layers are assumed to add up (HAWQ-V2, Dong et al., arXiv 1911.03852, equation 7). Minimising
their sum under a budget is then a knapsack problem with one choice per group of layers, which dynamic programming
solves exactly.
"""

import math
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import torch
from torch import nn

from lib.export import packing, size
from lib.models import blocks, capture
from lib.quantized.grid import BITS, Quantized
from lib.quantizers import calibrate, embedding, gptq_signround, sensitivity
from lib.quantizers.sensitivity import Losses
from lib.sources import texts

UNITS = 20_000  # most steps into which the dynamic programming divides the budget


def quantize_(
    model: nn.Module,
    calibration,
    *,
    megabytes: float,
    group_size: int = 64,
    levels: str = "integer",
    widths=BITS,
    windows: int = 2,
    losses: Losses | None = None,
    state=None,
    device: str | None = None,
) -> dict[str, Quantized]:
    """Quantize all blocks, embedding and head of `model`, in place, so that the saved artifact fits into `megabytes`.

    megabytes: of 10⁶ bytes, for what `metrics.count.artifact_bytes` counts. levels: of all grids. widths: bits to
    choose from. windows: of the calibration text on which losses are measured, 2 by default. That takes G · B (B + 1) /
    2 passes of a block over these windows for B blocks with G groups of layers each (4 in Llama): it is the one part
    whose time grows with the square of B. losses: an earlier result of `sensitivity.measure`, to save the time. state:
    folder for finished parts, so that a killed job resumes. Raises ValueError when even the fewest bits are too large
    for the budget, and for widths that a matrix can't take, before any work.
    """
    grid = {"group_size": group_size, "levels": levels}
    if losses is None:
        widths = check(model, megabytes, widths=widths, **grid)
    tokens = texts.tokens(calibration, model)
    calibrate.check_memory(model, tokens, streams=2)
    if losses is None:
        measuring = {"windows": windows, "state": state and Path(state) / "losses"}
        losses = sensitivity.measure(model, tokens, widths=widths, **grid, **measuring)
    plan = fit(model, losses, megabytes=megabytes, **grid)
    return apply_(model, tokens, plan, **grid, state=state, device=device)


def apply_(
    model: nn.Module,
    calibration,
    plan: dict[str, int],
    *,
    group_size: int = 64,
    levels: str = "integer",
    steps: int | Callable[[str], int] = 0,
    state=None,
    device: str | None = None,
    **learning,
) -> dict[str, Quantized]:
    """Quantize embedding and head, then each layer inside the blocks by GPTQ, at the bits of `plan` (by layer name).

    steps: of SignRound, starting from GPTQ's codes, with the `learning` of `gptq_signround.quantize_`. Raises
    ValueError, before the work, for a plan that lacks a matrix or gives it unsupported bits; a tied model needs only
    the embedding.
    """
    table, head = _ends(model)
    _check_names(model, plan)
    grid = {"group_size": group_size, "levels": levels}
    ends = {"bits": plan[table], "head_bits": plan.get(head)}
    embedding.check_parts(model, **ends, group_size=group_size)
    tokens = texts.tokens(calibration, model)
    gptq_signround.check(model, tokens, plan, **grid, steps=steps, **learning)
    clean = capture.capture(model, tokens).hidden  # the original's inputs come from its own embedding
    parts = [None, None] if state is None else [Path(state) / part for part in ("embedding", "blocks")]
    done = embedding.quantize_(model, tokens, **ends, **grid, state=parts[0], device=device)
    learning |= {"steps": steps, "clean": clean, "state": parts[1], "device": device}
    return done | gptq_signround.quantize_(model, tokens, plan, **grid, **learning)


def fit(
    model: nn.Module, losses: Losses, *, megabytes: float, group_size: int = 64, levels: str = "integer"
) -> dict[str, int]:
    """Bits by layer name with the least sum of `losses` whose artifact, headers and all, has at most that size."""
    for names, table in losses.items():
        sensitivity.check(names, table)
    least = {name: min(table) for names, table in losses.items() for name in names}
    _check_names(model, least)
    grid = {"group_size": group_size, "levels": levels}
    choices, budget = list(losses), _budget(model, least, megabytes, grid)
    costs = [{bits: _size(model, names, bits, grid) for bits in table} for names, table in losses.items()]
    room = budget
    while True:
        bits = solve(costs, [losses[names] for names in choices], room)
        if bits is None:
            return least
        plan = {name: width for names, width in zip(choices, bits) for name in names}
        over = size.predict(model, matrices(model, plan, **grid)) - budget
        if over <= 0:
            return plan
        # norms and headers take a share that hardly depends on the plan
        room = min(room - 1, sum(table[width] for table, width in zip(costs, bits)) - over)


def megabytes(model: nn.Module, plan: dict[str, int], *, group_size: int = 64, levels: str = "integer") -> float:
    """Size of the artifact, in 10⁶ bytes, that `plan` (bits by layer name) makes of `model`, to the byte."""
    return size.predict(model, matrices(model, plan, group_size=group_size, levels=levels)) / 1e6


def solve(costs: list[dict[int, int]], losses: list[dict[int, float]], budget: int) -> list[int] | None:
    """One key of each table with the least sum of losses and a sum of costs of at most `budget`; None without any.

    Exact when the costs' common divisor divides the budget into at most `UNITS` steps; otherwise costs are rounded up
    to such a step, and the budget is still kept.
    """
    spread = [cost - min(table.values()) for table in costs for cost in table.values()]
    room = budget - sum(min(table.values()) for table in costs)
    if room < 0:
        return None
    room = min(room, sum(max(table.values()) - min(table.values()) for table in costs))
    unit = max(reduce(math.gcd, spread, 0), math.ceil(room / UNITS), 1)
    best, chosen = torch.zeros(room // unit + 1, dtype=torch.float64), []
    for cost, loss in zip(costs, losses):
        keys = sorted(cost)
        tries = torch.full((len(keys), len(best)), torch.inf, dtype=torch.float64)
        for row, key in enumerate(keys):
            step = -(-(cost[key] - min(cost.values())) // unit)
            if step < len(best):
                tries[row, step:] = best[: len(best) - step] + loss[key]
        best, index = tries.min(0)
        chosen.append((keys, index, cost))
    place, found = int(best.argmin()), []
    for keys, index, cost in reversed(chosen):
        key = keys[int(index[place])]
        found.append(key)
        place -= -(-(cost[key] - min(cost.values())) // unit)
    return found[::-1]


def check(
    model: nn.Module, megabytes: float, *, widths=BITS, group_size: int = 64, levels: str = "integer"
) -> tuple[int, ...]:
    """Return `widths`; raise ValueError before the work for unsupported widths or a budget of `megabytes` too small."""
    grid = {"group_size": group_size, "levels": levels}
    widths = sensitivity.check_widths(model, widths, **grid)
    _budget(model, dict.fromkeys([*_ends(model), *calibrate.layers(model)], min(widths)), megabytes, grid)
    return widths


def _budget(model: nn.Module, least: dict[str, int], megabytes: float, grid: dict) -> int:
    """Bytes that `megabytes` allow; ValueError unless the plan `least`, with the fewest bits everywhere, fits in."""
    if not 0 < megabytes < math.inf:
        raise ValueError(
            f"megabytes={megabytes}; a budget is a positive number of 10⁶ bytes; `allocate.megabytes` says what a plan "
            "takes."
        )
    budget, smallest = round(megabytes * 1e6), size.predict(model, matrices(model, least, **grid))
    if smallest > budget:
        raise ValueError(
            f"megabytes={megabytes:g} is too small: with {min(least.values())} bits everywhere the artifact has "
            f"{smallest / 1e6:.3f} MB; allow at least that, or make group_size larger."
        )
    return budget


def _ends(model: nn.Module) -> list[str]:
    """Names of embedding and head."""
    return [blocks.path_of(model, part) for part in (blocks.embeddings(model), blocks.head(model))]


def _check_names(model: nn.Module, plan: dict[str, int]) -> None:
    """Raise ValueError unless `plan` names all matrices of `model`; a tied head is the embedding."""
    wanted = [*_ends(model)[: 1 if blocks.tied(model) else None], *calibrate.layers(model)]
    if missing := [name for name in wanted if name not in plan]:
        raise ValueError(
            f"the plan lacks {len(missing)} of {len(wanted)} matrices, {missing[0]} first; embedding, head and all "
            "layers inside the blocks need bits; add them, or take what `allocate.fit` returns."
        )


def _size(model: nn.Module, names: tuple[str, ...], bits: int, grid: dict) -> int:
    """Bytes of the matrices called `names`; an embedding and its tied head are stored once."""
    found = matrices(model, dict.fromkeys(names, bits), **grid)
    once = blocks.tied(model) and set(names) == set(_ends(model))
    return sum(packing.size(matrix, model.dtype) for matrix in list(found.values())[: 1 if once else None])


def matrices(
    model: nn.Module, plan: dict[str, int], *, group_size: int, levels: str = "integer"
) -> dict[str, Quantized]:
    """The quantized matrices of `model` under `plan`, without numbers (meta device), for `export.size.predict`."""
    shapes = {name: model.get_submodule(name).weight.shape for name in plan}
    grid = {"group_size": group_size, "levels": levels}
    return {name: packing.planned(*shapes[name], bits=bits, **grid) for name, bits in plan.items()}
