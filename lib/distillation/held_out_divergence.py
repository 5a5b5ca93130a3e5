"""The divergence on unseen text while a student with few bits trains, and its best state, which is kept."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from lib import files
from lib.metrics import divergence
from lib.quantized.linear import QuantLinear

CURVE, BEST = "held_out.json", "best.safetensors"
KEPT = ("codes", "scale", "zero_point")  # of a layer, what a training may change


class HeldOut:
    """Measures KL(original || student) every so many steps; given to `loop.train_` as `on_step` and `stop`.

    parts: the layers that are trained, by name. reference: of the original on `tokens` [windows, length], which the
    training must not see. every: steps between two measurements. patience: so many measurements in a row that are no
    better than the best end the training; None never does. folder: keeps curve and best state, so that a training that
    was killed ends with both. divergences: step -> mean KL in nats a token.
    """

    def __init__(
        self,
        student: nn.Module,
        parts: dict[str, nn.Module],
        reference,
        tokens: Tensor,
        *,
        every: int,
        patience: int | None = None,
        folder: Path | str | None = None,
    ):
        if every < 1 or (patience is not None and patience < 1):
            raise ValueError(f"every={every} and patience={patience}; 1 step or measurement and more are allowed.")
        self.student, self.parts, self.reference, self.tokens = student, parts, reference, tokens
        self.every, self.patience, self.folder = every, patience, None if folder is None else Path(folder)
        self.divergences: dict[int, float] = {}
        self._best: dict[str, Tensor] | None = None
        if self.folder is not None and (self.folder / CURVE).exists():
            kept = json.loads((self.folder / CURVE).read_text(encoding="utf-8"))
            self.divergences = {int(step): value for step, value in kept.items()}

    def begin(self) -> None:
        """Measure the student as it is before the training."""
        if 0 not in self.divergences:
            self.measure(0)

    def __call__(self, step: int, loss: float) -> None:
        """Measure, where `step` is due."""
        if step % self.every == 0:
            self.measure(step)

    def measure(self, step: int) -> float:
        """Measure now, as after `step`; nats a token. The best state so far is kept."""
        with self._as_stored() as layers:
            found = divergence.compare(self.student, self.reference, self.tokens).divergence.double().mean().item()
            state = {
                f"{name}:{each}": tensor for name, layer in layers.items() for each, tensor in _kept(layer).items()
            }
        best = min((value for at, value in self.divergences.items() if at < step), default=float("inf"))
        self.divergences[step] = found
        if found < best and self.folder is None:
            self._best = state
        elif found < best:
            files.write_bytes(self.folder / BEST, safetensors.torch.save(state))
        if self.folder is not None:
            files.write_text(self.folder / CURVE, json.dumps(dict(sorted(self.divergences.items()))))
        return found

    def stop(self, step: int) -> bool:
        """Whether the last `patience` measurements up to `step` were no better than the best before them."""
        values = [value for at, value in sorted(self.divergences.items()) if at <= step]
        if self.patience is None or len(values) <= self.patience:
            return False
        return min(values[-self.patience :]) >= min(values[: -self.patience])

    @property
    def best(self) -> int:
        """The step with the smallest divergence, the first of equals."""
        return min(sorted(self.divergences), key=self.divergences.get)

    def settle_(self, last: int) -> None:
        """Store the best state in the quantized layers, after measuring `last`, the step at which the training ends."""
        if last not in self.divergences:
            self.measure(last)
        kept = self._best or safetensors.torch.load_file(self.folder / BEST)
        for name, part in self.parts.items():
            _put_(part.layer, {each: kept[f"{name}:{each}"] for each in _kept(part.layer)})

    @contextlib.contextmanager
    def _as_stored(self) -> Iterator[dict[str, nn.Module]]:
        """Context in which the student has the layers that it would be saved with now: scales lose digits then."""
        layers = {name: part.layer for name, part in self.parts.items()}
        before = {name: _kept(layer) for name, layer in layers.items()}
        try:
            for name, part in self.parts.items():
                part.settle_()
                self.student.set_submodule(name, part.layer)
            yield layers
        finally:
            for name, part in self.parts.items():
                self.student.set_submodule(name, part)
                _put_(part.layer, before[name])


def _kept(layer: nn.Module) -> dict[str, Tensor]:
    """The tensors of a quantized layer that a training may change and that it has; of a norm its parameters."""
    if not isinstance(layer, QuantLinear):
        return {name: each.detach().clone() for name, each in layer.named_parameters()}
    return {each: getattr(layer, each) for each in KEPT if getattr(layer, each) is not None}


def _put_(layer: nn.Module, tensors: dict[str, Tensor]) -> None:
    if not isinstance(layer, QuantLinear):
        for name, parameter in layer.named_parameters():
            parameter.data.copy_(tensors[name])
        return
    for each, tensor in tensors.items():
        setattr(layer, each, tensor)
    layer.forget()
