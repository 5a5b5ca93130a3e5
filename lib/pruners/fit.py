"""To a budget: how many blocks must go for a size, a memory or a speed, what that costs, and what came of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lib.metrics import count, speed, throughput
from lib.metrics.score import Score, exact
from lib.pruners import depth
from lib.pruners.budget import Budget


@dataclass(frozen=True)
class Fit:
    """What `fit_` did. removed: blocks, counted from 0 as in the whole model, in the order in which they went.

    predicted: `parameters`, `megabytes`, `tokens_per_second` and, where it was asked for, `memory_megabytes`, before
    anything was cut; the speed as a multiple of the whole model's, which is timed again in turns with the pruned one,
    so that a machine that has changed its pace since is no error. measured: the same of the pruned model, `megabytes`
    only where it was saved.
    """

    removed: list[int]
    predicted: dict[str, float]
    measured: dict[str, Score]

    @property
    def errors(self) -> dict[str, float]:
        """How far each prediction is from what was measured, as a share of that."""
        return {kind: abs(self.predicted[kind] / score.value - 1) for kind, score in self.measured.items()}


def fit_(
    model: nn.Module,
    calibration,
    *,
    parameters: int | None = None,
    megabytes: float | None = None,
    memory_megabytes: float | None = None,
    tokens_per_second: float | None = None,
    phase: str = "decode",
    way: str = "one_shot",
    score: str = "leave_one_out",
    protect: Iterable[int] = (),
    state=None,
    folder: Path | str | None = None,
    prompt: int = 128,
    new_tokens: int = 32,
    rounds: int = 3,
) -> Fit:
    """Remove as few blocks of `model`, in place, as the budget takes; returns the `Fit`.

    The budget is one or more of parameters, megabytes (10⁶ bytes of the saved artifact), memory_megabytes (weights
    and a pass over 2000 tokens) and tokens_per_second (batch 1, `phase` "decode" or "prefill", with so many tokens of
    `prompt` and `new_tokens`). Sizes are predicted exactly; memory and speed by a line through depths measured first,
    on this machine as it is now: what other programs take later is not in it. folder: where to save the result.
    way, score, protect and state are those of `depth.choose`. Raises ValueError, before anything is cut, for a budget
    that can't be met.
    """
    timing = {"prompt": prompt, "new_tokens": new_tokens, "rounds": rounds}
    wanted = {"parameters": parameters, "megabytes": megabytes}
    wanted |= {"memory_megabytes": memory_megabytes, "tokens_per_second": tokens_per_second}
    protect = list(protect)
    budget = Budget(model, protect, phase=phase, timing=timing, **wanted)
    removed = depth.choose(model, calibration, way=way, score=score, protect=protect, state=state, budget=budget)
    asked = [kind for kind in wanted if kind != "memory_megabytes" or memory_megabytes is not None]
    predicted = {kind: budget.predict(kind, removed) for kind in asked}
    paced = speed.measure({"whole": model, "pruned": depth.without(model, removed)}, **timing)
    predicted["tokens_per_second"] *= paced["whole"][phase].value / budget.predict("tokens_per_second", [])
    depth.drop_blocks_(model, removed)
    measured = {"parameters": exact(count.parameters(model), "weights", higher_is_better=False)}
    measured["tokens_per_second"] = paced["pruned"][phase]
    if memory_megabytes is not None:
        used = throughput.measure({"pruned": model}, rounds=1)["pruned"]["memory"]
        measured["memory_megabytes"] = exact(used.value / 1e6, "MB", higher_is_better=False)
    if folder is not None:
        measured["megabytes"] = _saved(model, folder)
    return Fit(removed, predicted, measured)


def _saved(model: nn.Module, folder: Path | str) -> Score:
    from lib.export import plain

    plain.save(model, model.tokenizer, folder)
    return exact(count.artifact_bytes(folder) / 1e6, "MB", higher_is_better=False)
