"""The recipe: the combination of methods that measured best in `29_best_recipe`, fitted to a size and a time limit.

    1. bits: the same for all layers or, given a budget in megabytes, chosen for each layer by `allocate`; embedding
       and head are then quantized first;
    2. for each block, GPTQ on grids with searched ranges, then SignRound starting from GPTQ's codes (`gptq_signround`);
    3. training of the scales end to end (`e2e_qp`), for the time that is left.

At 2 bits zero points are multiples of a half (`quantized.levels`). Refined by SignRound (packaged model, one draw of 32
windows of WikiText-2, 30 steps; 12 windows to test) they are ahead of whole codes, in nats a token, by 0.156 ± 0.014 of
0.929 on WikiText-2, 0.195 ± 0.032 of 1.329 on C4 and 0.183 ± 0.016 of 1.219 on novels. The tables in `data/published`
were measured with whole codes; at 3 bits halves were measured with GPTQ alone.

`time_budget` decides how many steps each part gets. Each part is a function of its own in this folder; the notebook
shows what each one is worth at each bit width.
"""

import math
from pathlib import Path

from torch import nn

from lib import timing
from lib.metrics import divergence
from lib.quantized.grid import Quantized
from lib.quantizers import allocate, calibrate, e2e_qp, gptq_signround, sensitivity
from lib.quantizers.time_budget import FixedSteps, JobLog, TimeBudget
from lib.sources import texts

BATCH = 2  # windows in a step of SignRound
HALVES = (2,)  # bits at which half-integer zero points measured better than whole codes


def quantize_(
    model: nn.Module,
    calibration,
    *,
    bits: int | None = None,
    megabytes: float | None = None,
    minutes: float = 30,
    steps: int | None = None,
    group_size: int = 64,
    levels: str | None = None,
    seed: int = 0,
    state: Path | str | None = None,
) -> dict[str, Quantized]:
    """Quantize `model` in place as well as `minutes` allow; returns all quantized matrices by layer name.

    calibration: windows of text, or token ids [count, length]. Give either bits, for the layers inside the blocks, with
    embedding and head left as they are, or megabytes (10⁶ bytes), for the whole saved artifact.
    minutes: a limit on the whole job. Training gets what the fixed work leaves (measuring sensitivities, quantizing the
    embedding, quantizing the blocks without training). The limit can be exceeded only by as much as the fixed work runs
    over its estimate from the first block. steps: instead of minutes, this many SignRound steps in each block and as
    many training steps of the scales, on all windows, so that the result depends on the arguments alone.
    levels: of all grids, see `quantized.levels`; None takes halves for `HALVES` bits and whole codes otherwise, and for
    megabytes. Plain transformers reads files of whole codes only; `quantized.integers` makes such of halves, with a bit
    more. state: folder for finished parts and for the decisions made by the clock (`plan.json`), so that a killed job
    resumes; the time before the kill counts.
    Raises ValueError, before anything is written, unless exactly one of bits and megabytes is given, for megabytes
    below the smallest possible artifact, for minutes below the fixed work (the message names the least), and for a
    state of other arguments. With megabytes, measuring takes time that grows with the square of the number of blocks
    (`sensitivity.measure`); everything else grows linearly.
    """
    begun = timing.clock()
    if levels is None:
        levels = "half" if bits in HALVES else "integer"
    grid = {"group_size": group_size, "levels": levels}
    _check(model, bits, megabytes, minutes, steps, grid)
    tokens = texts.tokens(calibration, model)
    job = {"bits": bits, "megabytes": megabytes, **grid, "seed": seed, "steps": steps}
    with JobLog(state, begun, model, tokens, **job, minutes=minutes if steps is None else None) as log:
        batch = min(BATCH, len(tokens))
        timed = {"minutes": minutes, "sized": bits is None, "group_size": group_size, "batch": batch}
        budget = TimeBudget(log, model, tokens, **timed) if steps is None else FixedSteps(steps)
        tokens = tokens[: budget.windows(tokens)]
        calibrate.check_memory(model, tokens, streams=2)
        reference = divergence.remember(model, tokens)
        if bits is None:
            bits = log.once("bits", lambda: _widths(model, tokens, megabytes, grid, budget, log.folder("losses")))

        compress_ = gptq_signround.quantize_ if isinstance(bits, int) else allocate.apply_
        learning = {"steps": budget.rounding(), "batch": batch, "seed": seed, "state": log.folder("blocks")}
        done = compress_(model, tokens, bits, **grid, **learning)
        count = log.once("steps", lambda: budget.tuning(model, tokens, reference))
        if count:
            tuning = {"steps": count, "seed": seed, "state": log.folder("scales"), "stop": budget.stop}
            done |= e2e_qp.tune_(model, tokens, reference, **tuning)
            log.once("tuned", lambda: count)  # a finished job that is asked for again has no time left
    return done


def _widths(
    model: nn.Module, tokens, megabytes: float, grid: dict, budget: TimeBudget | FixedSteps, state
) -> dict[str, int]:
    """Bits by layer name that fit into `megabytes`."""
    with budget.measuring():
        losses = sensitivity.measure(model, tokens, **grid, state=state)
    return allocate.fit(model, losses, megabytes=megabytes, **grid)


def _check(
    model: nn.Module, bits: int | None, megabytes: float | None, minutes: float, steps: int | None, grid: dict
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
        allocate.check(model, megabytes, **grid)
    else:
        calibrate.check_layers(model, bits=bits, **grid)
