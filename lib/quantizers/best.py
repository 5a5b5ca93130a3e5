"""The recipe: what measured best on the ladder of `29_best_recipe`, fitted to a size and to the minutes at hand.

    1. bits: the same for all layers, or for a budget in megabytes those that `allocate` gives each layer; embedding
       and head are then quantized first;
    2. per block GPTQ, on grids whose ranges are searched, and from its codes on SignRound (`refined`);
    3. scales end to end, for the time that is left.

How much of each, `pace` decides by the clock. Each step is a function of its own in this folder; the notebook says
what each one is worth at each bit width.
"""

import math
from pathlib import Path

from torch import nn

from lib import timing
from lib.metrics import divergence
from lib.quantized.grid import Quantized
from lib.quantizers import allocate, calibrate, refined, scales, sensitivity
from lib.quantizers.time_budget import Fixed, Pace, Plan

BATCH = 2  # windows in a step of rounding


def quantize_(
    model: nn.Module,
    calibration,
    *,
    bits: int | None = None,
    megabytes: float | None = None,
    minutes: float = 30,
    steps: int | None = None,
    group_size: int = 64,
    seed: int = 0,
    state: Path | str | None = None,
) -> dict[str, Quantized]:
    """Quantize `model` in place as well as `minutes` allow; returns all quantized matrices by layer name.

    calibration: windows of text, or token ids [count, length]. Either bits: of the layers inside the blocks, all
    alike, with embedding and head left as they are; or megabytes: of 10⁶ bytes, for the whole saved artifact.
    minutes: learning takes what is left of them beside the work that can't be divided (measuring the sensitivities,
    quantizing embedding and blocks without learning). They are exceeded only where that work takes longer than it did
    when it was tried on the first block, and by that much. steps: of rounding in each block, and as many of tuning,
    whatever they take, on all windows: the bytes then depend on the arguments alone, and minutes say nothing.
    state: folder for finished parts and for what the clock decided (`plan.json`), so that a killed job resumes; the
    time before the kill counts. Raises ValueError unless exactly one of bits and megabytes is given, for megabytes that
    are fewer than the least artifact takes and minutes that are fewer than the least work takes (which is said), and
    for a state of other arguments; nothing is written then. With megabytes, the time that measuring takes grows with
    the square of the number of blocks (`sensitivity.measure`); all else is linear in it.
    """
    from lib.sources import texts

    begun = timing.clock()
    _check(model, bits, megabytes, minutes, steps, group_size)
    tokens = texts.tokens(calibration, model)
    job = {"bits": bits, "megabytes": megabytes, "group_size": group_size, "seed": seed, "steps": steps}
    plan = Plan(state, begun, model, tokens, **job, minutes=minutes if steps is None else None)
    grid = {"group_size": group_size, "batch": min(BATCH, len(tokens))}
    pace = Pace(plan, model, tokens, minutes=minutes, sized=bits is None, **grid) if steps is None else Fixed(steps)
    tokens = tokens[: pace.windows(tokens)]
    calibrate.check_memory(model, tokens, streams=2)
    reference = divergence.remember(model, tokens)
    if bits is None:
        bits = plan.once("bits", lambda: _widths(model, tokens, megabytes, group_size, pace, plan.folder("losses")))

    compress_ = refined.quantize_ if isinstance(bits, int) else allocate.apply_
    done = compress_(model, tokens, bits, steps=pace.rounding(), seed=seed, state=plan.folder("blocks"), **grid)
    count = plan.once("steps", lambda: pace.tuning(model, tokens, reference))
    if count:
        tuning = {"steps": count, "seed": seed, "state": plan.folder("scales"), "stop": pace.stop}
        done |= scales.tune_(model, tokens, reference, **tuning)
        plan.once("tuned", lambda: count)  # a finished job that is asked for again has no time left
    return done


def _widths(model: nn.Module, tokens, megabytes: float, group_size: int, pace: Pace | Fixed, state) -> dict[str, int]:
    """Bits by layer name that fit into `megabytes`."""
    with pace.measuring():
        losses = sensitivity.measure(model, tokens, group_size=group_size, state=state)
    return allocate.fit(model, losses, megabytes=megabytes, group_size=group_size)


def _check(
    model: nn.Module, bits: int | None, megabytes: float | None, minutes: float, steps: int | None, group_size: int
) -> None:
    if (bits is None) == (megabytes is None):
        raise ValueError(
            f"bits={bits} and megabytes={megabytes}; the recipe takes one of them; give bits for the layers inside the "
            "blocks, or megabytes for the whole artifact."
        )
    if not 0 < minutes < math.inf:
        raise ValueError(f"minutes={minutes}; the recipe needs a positive number of them; 30 is the default.")
    if steps is not None and steps < 0:
        raise ValueError(f"steps={steps}; tuning takes 0 (none) or more; leave it out to let minutes decide.")
    if bits is None:
        allocate.check(model, megabytes, group_size=group_size)
    else:
        calibrate.check_layers(model, bits=bits, group_size=group_size)
