"""Pruning budgets: a number or a share of blocks, or a limit on weights, bytes, memory or speed."""

import math
from collections.abc import Sequence

from torch import nn

from lib import files
from lib.export import size
from lib.metrics import count
from lib.models.blocks import blocks
from lib.pruners import probe
from lib.pruners.drop import without

LIMITS = ("parameters", "megabytes", "memory_megabytes", "tokens_per_second")
KINDS = ("blocks", "ratio", *LIMITS)


class Budget:
    """One or more demands on the pruned model, all of which must be met. Blocks in `spare` are never removed.

    blocks: how many to remove. ratio: the share of blocks to remove, rounded up. parameters: most weights left.
    megabytes: largest saved artifact (10⁶ bytes), exact to the byte. memory_megabytes: most memory for weights and a
    pass over 2000 tokens. tokens_per_second: least speed in `phase` "decode" or "prefill". The last two are predicted
    from measured depths. Raises ValueError, before anything is scored, for a budget that cannot be met, is out of
    range, or is missing; TypeError for an unknown one.
    """

    def __init__(
        self,
        model: nn.Module,
        spare: Sequence[int] = (),
        *,
        phase: str = "decode",
        timing: dict | None = None,
        lines: dict[str, probe.Line] | None = None,
        **wanted,
    ):
        """timing: options of `probe.seconds`. lines: fits measured earlier, by kind."""
        self.model, self.phase, self.timing = model, probe.known(phase), timing or {}
        self.count = len(blocks(model))
        self.wanted = {kind: value for kind, value in wanted.items() if value is not None}
        self.lines = dict(lines or {})
        _check(self.wanted)
        free = [index for index in range(self.count) if index not in set(spare)]
        self.most = free[: self.count - 1]  # removable blocks; one block must stay
        self._check_room(self.most, len(free))

    def met(self, removed: Sequence[int]) -> bool:
        """Whether the model without the blocks `removed` meets the budget."""
        return all(self._keeps(kind, value, removed) for kind, value in self.wanted.items())

    def predict(self, kind: str, removed: Sequence[int]) -> float:
        """Predicted value of `kind`, one of `LIMITS`, for the model without the blocks `removed`.

        Memory and speed depend on the number of blocks only: blocks of different kinds count as their average. The
        depths that the prediction needs are measured at the first call.
        """
        left = self.count - len(removed)
        if kind == "parameters":
            return count.parameters(without(self.model, removed))
        if kind == "megabytes":
            return size.predict(without(self.model, removed)) / 1e6
        if kind not in self.lines:
            timed = kind == "tokens_per_second"
            self.lines[kind] = (
                probe.seconds(self.model, self.phase, **self.timing) if timed else probe.memory(self.model)
            )
        value = self.lines[kind].at(left)
        return 1 / value if kind == "tokens_per_second" else value / 1e6

    def scale_to(self, seconds: float) -> None:
        """Scale speed predictions to a machine on which one token of the whole model takes `seconds`."""
        line = self.lines["tokens_per_second"]
        self.lines["tokens_per_second"] = line.times(seconds / line.at(self.count))

    def _keeps(self, kind: str, value: float, removed: Sequence[int]) -> bool:
        if kind == "blocks":
            return len(removed) >= value
        if kind == "ratio":
            return len(removed) >= math.ceil(value * self.count - 1e-9)
        found = self.predict(kind, removed)
        return found >= value if kind == "tokens_per_second" else found <= value

    def _check_room(self, most: list[int], free: int) -> None:
        """Raise ValueError for a demand that is not met even when all blocks of `most` are gone."""
        for kind, value in sorted(self.wanted.items(), key=lambda item: KINDS.index(item[0])):  # timed demands last
            if self._keeps(kind, value, most):
                continue
            counted = kind in ("blocks", "ratio")
            reach = f"is {len(most)} of them" if counted else f"leads to {self.predict(kind, most):,.6g}"
            raise ValueError(
                f"{kind}={value} of a model with {self.count} blocks, {self.count - free} of them protected: removing "
                f"all that may go {reach}, one must stay; ask for less, or protect fewer."
            )


def _check(wanted: dict) -> None:
    if unknown := [kind for kind in wanted if kind not in KINDS]:
        raise TypeError(f"budget {unknown[0]!r} is unknown; {files.choices(unknown[0], KINDS)}")
    if not wanted:
        raise ValueError(f"no budget was given; say how far to prune by one or more of {', '.join(KINDS)}.")
    for kind, value in wanted.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        whole = kind != "blocks" or (number and value == int(value))
        if not (number and whole and (value >= 0 if kind in ("blocks", "ratio") else value > 0)):
            raise ValueError(f"{kind}={value!r}; choose a {'whole ' if kind == 'blocks' else ''}number from 0.")
        if kind == "ratio" and value >= 1:
            raise ValueError(
                f"ratio={value}; the share of blocks that goes is 0 or more and below 1; choose 0.25, say."
            )
