"""What a loss sees of a training beside its value (margins, lengths, entropies): means over each step's rows.

A loss notes sums and counts in each forward pass; the loop asks for them once a step, adds them up over all processes,
and keeps the means in the training's history, so that a training that was killed and resumed ends with all of them.
"""

import torch
from torch import Tensor

from lib.trainers import processes


class Measures:
    """Sums and counts by name, of the passes since they were last told. last: what was told last, for who watches."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self.last: dict[str, float | None] = {}

    @torch.no_grad()
    def note(self, **values: tuple[Tensor, Tensor | int]) -> None:
        """Add (sum, count) to each name; of a mean over rows [n] that is (rows.sum(), n)."""
        for name, (total, count) in values.items():
            pair = torch.stack([torch.as_tensor(each, dtype=torch.float64).cpu() for each in (total, count)])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def told(self, device: torch.device | str = "cpu") -> dict[str, float | None]:
        """The mean of each name over all processes, None where nothing was counted; forgets them.

        device: of the tensor that processes exchange.
        """
        names = sorted(self._sums)
        if not names:
            return {}
        sums = torch.stack([self._sums[name] for name in names])
        if processes.together():
            sums = processes.added(sums.to(device)).cpu()
        self._sums = {}
        self.last = {name: float(total / count) if count else None for name, (total, count) in zip(names, sums)}
        return self.last


def rows(values: Tensor) -> tuple[Tensor, int]:
    """(sum, count) of one value a row [n]."""
    return values.double().sum(), len(values)
