"""Pruning to a budget: how many blocks must go for a size, a memory or a speed, as predicted and as measured."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lib import files, folders
from lib.export import plain
from lib.metrics import count, speed, throughput
from lib.metrics.score import Score, exact
from lib.pruners import depth
from lib.pruners.budget import Budget


@dataclass(frozen=True)
class Fit:
    """The result of `fit_`. removed: indices of the removed blocks in the whole model, in order of removal.

    wanted: the demands. predicted: `parameters`, `megabytes`, `tokens_per_second` and, where asked for,
    `memory_megabytes`, before anything was removed. The predicted speed is a multiple of the whole model's, which is
    timed again in turns with the pruned one, so that a change in the machine's speed does not count as an error.
    measured: the same quantities of the pruned model; `megabytes` only where it was saved.
    """

    removed: list[int]
    wanted: dict[str, float]
    predicted: dict[str, float]
    measured: dict[str, Score]

    @property
    def errors(self) -> dict[str, float]:
        """Relative error of each prediction."""
        return {kind: abs(self.predicted[kind] / score.value - 1) for kind, score in self.measured.items()}

    @property
    def missed(self) -> list[str]:
        """The demands that the measured values (or the predicted ones, where none was measured) do not meet."""
        found = self.predicted | {kind: score.value for kind, score in self.measured.items()}
        more = {"tokens_per_second"}  # of all others, less is better
        kept = {
            kind: found[kind] >= value if kind in more else found[kind] <= value for kind, value in self.wanted.items()
        }
        return [kind for kind in kept if not kept[kind]]

    @property
    def met(self) -> bool:
        """Whether every demand is met."""
        return not self.missed


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
    """Remove as few blocks of `model`, in place, as meet the budget.

    The budget is one or more of parameters, megabytes (10⁶ bytes of the saved artifact), memory_megabytes (weights
    and a pass over 2000 tokens) and tokens_per_second (batch 1, `phase` "decode" or "prefill", with so many tokens of
    `prompt` and `new_tokens`). Sizes are predicted exactly; memory and speed by a straight line through depths that are
    measured first on this machine, without the load of programs started later. If the machine has become slower when
    the choice is made, more blocks are removed; a warning says where that is not enough, or where a measured value
    misses the demand. folder: where to save the result. way, score, protect and state are those of `depth.choose`.

    Raises ValueError, before anything is timed, for names, blocks and models that `depth.choose` refuses, and before
    anything is cut for a budget that can't be met; PermissionError or OSError, as early, for folders that can't hold
    what is to be written.
    """
    protect, timing = list(protect), {"prompt": prompt, "new_tokens": new_tokens, "rounds": rounds}
    demands = {"parameters": parameters, "megabytes": megabytes}
    demands |= {"memory_megabytes": memory_megabytes, "tokens_per_second": tokens_per_second}
    depth.checked(model, calibration, way=way, score=score, protect=protect)
    _check_folders(model, folder, state)
    budget = _TimedBudget(Budget(model, protect, phase=phase, timing=timing, **demands))
    removed = depth.choose(model, calibration, way=way, score=score, protect=protect, state=state, budget=budget)
    measured = {"tokens_per_second": budget.time(removed)}
    asked = [kind for kind in demands if kind != "memory_megabytes" or memory_megabytes is not None]
    predicted = {kind: budget.of.predict(kind, removed) for kind in asked}
    _check_folders(model, folder, None, predicted["megabytes"])
    depth.drop_blocks_(model, removed)
    measured |= _sizes(model, folder, memory="memory_megabytes" in asked)
    found = Fit(removed, budget.of.wanted, predicted, measured)
    for kind in found.missed:
        _warn(found, kind, budget.of)
    return found


class _TimedBudget:
    """A `Budget` whose speed is met only when timing confirms it: the pruned model in turns with the whole one.

    A shortfall smaller than the timing error is ignored; a larger one is timed again, so that background load does not
    remove extra blocks. If even the deepest cut is too slow now, the cut chosen earlier is kept.
    """

    def __init__(self, budget: Budget):
        self.of, self.timed, self.error = budget, {}, 0.0

    def met(self, removed: Sequence[int]) -> bool:
        if not self.of.met(removed):
            return False
        if "tokens_per_second" not in self.of.wanted:
            return True
        self.time(removed)
        if self._misses(removed):
            self.time(removed, again=True)
        return not self._misses(removed) or self._misses(self.of.most)

    def _misses(self, removed: Sequence[int]) -> bool:
        """Whether the predicted speed, at the fast end of Student's 95 % interval, is below the demand."""
        fast = self.of.predict("tokens_per_second", removed) * (1 + self.error)
        return fast < self.of.wanted["tokens_per_second"]

    def time(self, removed: Sequence[int], again: bool = False) -> Score:
        """Tokens per second of the model without the blocks `removed`; scales the prediction to the present speed."""
        key, budget = frozenset(removed), self.of
        if again or key not in self.timed:
            budget.predict("tokens_per_second", [])  # measures the line, in case only sizes were asked for
            systems = {"whole": budget.model, "pruned": depth.without(budget.model, removed)}
            found = speed.measure(systems, **budget.timing)
            whole, self.timed[key] = found["whole"][budget.phase], found["pruned"][budget.phase]
            budget.scale_to(1 / whole.value)
            self.error = (whole.interval[1] if whole.interval else whole.value) / whole.value - 1
        return self.timed[key]


def _sizes(model: nn.Module, folder: Path | str | None, *, memory: bool) -> dict[str, Score]:
    """Sizes of the pruned model: weights, memory of a pass if asked for, and the artifact where it is saved."""
    found = {"parameters": exact(count.parameters(model), "weights", higher_is_better=False)}
    if memory:
        used = throughput.measure({"pruned": model}, rounds=1)["pruned"]["memory"]
        found["memory_megabytes"] = exact(used.value / 1e6, "MB", higher_is_better=False)
    if folder is not None:
        found["megabytes"] = _saved(model, folder)
    return found


def _check_folders(model: nn.Module, folder: Path | str | None, state, megabytes: float = 0.0) -> None:
    """Raise before the work what writing the result, or the steps of a greedy choice, would raise at its end."""
    if folder is not None:
        plain.check(model, getattr(model, "tokenizer", None))
        folders.check(folder, int(1e6 * megabytes) + plain.ROOM)
    if state is not None:
        files.check_folder(Path(state), state)


def _warn(found: Fit, kind: str, budget: Budget) -> None:
    """Warn that a demand was missed, with the wanted, predicted and measured values."""
    measured = f", {found.measured[kind].value:.4g} measured" if kind in found.measured else ""
    reach = "" if budget.met(budget.most) else " No depth reaches it at the machine's present speed."
    warnings.warn(
        f"{kind}={found.wanted[kind]:.4g} was asked: {found.predicted[kind]:.4g} predicted{measured} with "
        f"{len(found.removed)} of {budget.count} blocks removed.{reach} Ask for a little more, or use a quiet machine.",
        stacklevel=3,  # the caller of fit_
    )


def _saved(model: nn.Module, folder: Path | str) -> Score:
    plain.save(model, model.tokenizer, folder)
    return exact(count.artifact_bytes(folder) / 1e6, "MB", higher_is_better=False)
