"""The recipe: what measured best on the ladder of `29_best_recipe`, fitted to a size and to the minutes at hand.

    1. GPTQ on grids whose ranges are searched; for a budget in megabytes on the bits that `allocate` gives each
       layer, embedding and head included;
    2. scales end to end, for the time that is left.

Each step is a function of its own in this folder; the notebook says what each one is worth at each bit width.
"""

import json
import time
from pathlib import Path

from torch import Tensor, nn

from lib import files
from lib.metrics import divergence, logits
from lib.quantizers import allocate, calibrate, gptq, scales
from lib.quantizers.grid import Quantized

EPOCHS = 6  # times that tuning may see a window: more of them fit the calibration text and nothing else
FEWEST = 16  # calibration windows that are used however little time there is
PASSES = 3.2  # what a window costs before tuning (remembered, walked, its Hessians), in forward passes of the decoder
FIRST = 0.5  # share of the time for all that comes before tuning, where there are more windows than it allows


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
    """Quantize `model` in place as well as about `minutes` allow; returns all quantized matrices by layer name.

    calibration: windows of text, or token ids [count, length]. Either bits: of the layers inside the blocks, all
    alike, with embedding and head left as they are; or megabytes: of 10⁶ bytes, for the whole saved artifact.
    steps: of tuning, whatever they take, after all windows have been used: the bytes then depend on the arguments
    alone. state: folder for finished parts and for what the clock decided (`plan.json`), so that a killed job resumes.
    Raises ValueError unless exactly one of bits and megabytes is given, or when minutes aren't positive.
    """
    from lib.sources import texts

    begun = time.monotonic()
    _check(model, bits, megabytes, minutes, steps, group_size)
    tokens, plan = texts.tokens(calibration, model), Plan(state)
    tokens = tokens[
        : plan.once("windows", lambda: len(tokens) if steps is not None else _windows(model, tokens, minutes))
    ]
    reference = divergence.remember(model, tokens)
    if bits is not None:
        done = gptq.quantize_(model, tokens, bits=bits, group_size=group_size, state=plan.folder("gptq"))
    else:
        options = {"megabytes": megabytes, "group_size": group_size, "state": plan.folder("allocate")}
        done = allocate.quantize_(model, tokens, **options)

    def affordable() -> int:
        if steps is not None:
            return steps
        left = 60 * minutes - (time.monotonic() - begun)
        return min(EPOCHS * len(tokens), int(left / scales.seconds_per_step(model, tokens, reference)))

    count = plan.once("steps", affordable)
    if count > 0:
        done |= scales.tune_(model, tokens, reference, steps=count, seed=seed, state=plan.folder("scales"))
    return done


class Plan:
    """What the clock decided, kept as `plan.json` in `folder` (None keeps nothing)."""

    def __init__(self, folder: Path | str | None):
        self.path = None if folder is None else Path(folder) / "plan.json"

    def once(self, name: str, decide) -> int:
        """The number called `name`: as it was decided the first time."""
        kept = json.loads(self.path.read_text()) if self.path and self.path.exists() else {}
        if name not in kept:
            kept[name] = decide()
            if self.path:
                files.write_text(self.path, json.dumps(kept))
        return kept[name]

    def folder(self, part: str) -> Path | None:
        """Where `part` of the recipe keeps its state."""
        return self.path and self.path.parent / part


def _windows(model: nn.Module, tokens: Tensor, minutes: float) -> int:
    """How many of `tokens` [count, length] to use, so that tuning is left a fair share of the time."""
    with logits.evaluating(model):
        logits.hidden_states(model, tokens[:1])
        begun = time.monotonic()
        logits.hidden_states(model, tokens[:1])
        each = PASSES * (time.monotonic() - begun)
    return max(min(FEWEST, len(tokens)), min(len(tokens), int(FIRST * 60 * minutes / each)))


def _check(
    model: nn.Module, bits: int | None, megabytes: float | None, minutes: float, steps: int | None, group_size: int
) -> None:
    if (bits is None) == (megabytes is None):
        raise ValueError(
            f"bits={bits} and megabytes={megabytes}; the recipe takes one of them; give bits for the layers inside the "
            "blocks, or megabytes for the whole artifact."
        )
    if not minutes > 0:
        raise ValueError(f"minutes={minutes}; the recipe needs a positive number of them; 30 is the default.")
    if steps is not None and steps < 0:
        raise ValueError(f"steps={steps}; tuning takes 0 (none) or more; leave it out to let minutes decide.")
    calibrate.check_layers(model, bits=bits or 2, group_size=group_size)
