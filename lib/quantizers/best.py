"""The recipe: what measured best on the ladder of `29_best_recipe`, fitted to a size and to the minutes at hand.

    1. bits: the same for all layers, or for a budget in megabytes those that `allocate` gives each layer; embedding
       and head are then quantized first;
    2. per block GPTQ, on grids whose ranges are searched, and from its codes on SignRound (`refined`);
    3. scales end to end, for the time that is left.

Each step is a function of its own in this folder; the notebook says what each one is worth at each bit width.
"""

import json
import time
from pathlib import Path

from torch import Tensor, nn

from lib import files
from lib.metrics import divergence, logits
from lib.quantizers import allocate, calibrate, refined, scales, sensitivity
from lib.quantizers.grid import Quantized

EPOCHS = 6  # times that tuning may see a window: more of them fit the calibration text and nothing else
FEWEST = 16  # calibration windows that are used however little time there is
PASSES = 5  # what a window costs without learning (remembered, walked, its Hessians), in forward passes of the decoder
FIRST = 0.3  # share of the time for that, where there are more windows than it allows
ROUNDING = 0.65  # share of the time left for learning that rounding gets
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
    """Quantize `model` in place as well as about `minutes` allow; returns all quantized matrices by layer name.

    calibration: windows of text, or token ids [count, length]. Either bits: of the layers inside the blocks, all
    alike, with embedding and head left as they are; or megabytes: of 10⁶ bytes, for the whole saved artifact.
    steps: of rounding in each block, and as many of tuning, whatever they take, on all windows: the bytes then depend
    on the arguments alone. state: folder for finished parts and for what the clock decided (`plan.json`), so that a
    killed job resumes. Raises ValueError unless exactly one of bits and megabytes is given, or when minutes aren't
    positive.
    """
    from lib.sources import texts

    begun = time.monotonic()
    _check(model, bits, megabytes, minutes, steps, group_size)
    tokens, plan = texts.tokens(calibration, model), Plan(state)
    pace = None if steps is not None else Pace(model, tokens, begun, 60 * minutes)
    tokens = tokens[: plan.once("windows", lambda: pace.windows() if pace else len(tokens))]
    reference = divergence.remember(model, tokens)
    if bits is None:
        losses = sensitivity.measure(model, tokens, group_size=group_size)
        bits = allocate.fit(model, losses, megabytes=megabytes, group_size=group_size)

    settings = {"group_size": group_size, "batch": min(BATCH, len(tokens))}
    count = plan.once("rounding", lambda: pace.rounding(model, tokens, **settings) if pace else steps)
    settings |= {"steps": count, "seed": seed, "state": plan.folder("blocks")}
    compress_ = refined.quantize_ if isinstance(bits, int) else allocate.apply_
    done = compress_(model, tokens, bits, **settings)

    count = plan.once("steps", lambda: pace.tuning(model, tokens, reference) if pace else steps)
    if count:
        done |= scales.tune_(model, tokens, reference, steps=count, seed=seed, state=plan.folder("scales"))
    return done


class Pace:
    """How the time is spent: `total` seconds from `begun` on, on a machine whose speed is measured first."""

    def __init__(self, model: nn.Module, tokens: Tensor, begun: float, total: float):
        self.begun, self.total, self.count = begun, total, len(tokens)
        with logits.evaluating(model):
            logits.hidden_states(model, tokens[:1])
            start = time.monotonic()
            logits.hidden_states(model, tokens[:1])
            self.each = PASSES * (time.monotonic() - start)  # seconds a window, without learning

    def windows(self) -> int:
        """How many windows to use, so that learning is left a fair share of the time."""
        return max(min(FEWEST, self.count), min(self.count, int(FIRST * self.total / self.each)))

    def left(self, windows: int) -> float:
        """Seconds that are left for learning when so many windows are still to be walked."""
        return max(0, self.total - (time.monotonic() - self.begun) - self.each * windows)

    def rounding(self, model: nn.Module, tokens: Tensor, *, group_size: int, batch: int) -> int:
        """Steps of rounding in each block that fit into their share of the time left."""
        each = refined.seconds_per_step(model, tokens, group_size=group_size, batch=batch)
        return min(EPOCHS * len(tokens) // batch, int(ROUNDING * self.left(len(tokens)) / each))

    def tuning(self, model: nn.Module, tokens: Tensor, reference) -> int:
        """Steps of tuning that fit into the time left."""
        return min(EPOCHS * len(tokens), int(self.left(0) / scales.seconds_per_step(model, tokens, reference)))


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
