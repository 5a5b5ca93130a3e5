"""Drift: what reaches a layer behind compressed layers, and what the layer makes of it.

A layer with weights W answers W X̃ in the original model. In a compressed model it has weights Ŵ and inputs X that the
layers before it have changed, so its outputs differ by

    W X̃ - Ŵ X  =  W (X̃ - X)  +  (W - Ŵ) X
                   came in        added by its own rounding

and the powers of the two add up to the power of the difference where they have nothing to do with one another. Where
a method lets the layer's own change oppose what came in, the difference has less power than that: the layer takes
some of the drift back. All powers are shares of ‖W X̃‖²; a layer that answers zero has a difference of 1.
"""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.metrics import score
from lib.metrics.score import Score
from lib.models import capture
from lib.models.blocks import blocks, linears


@dataclass(frozen=True)
class Drift:
    """Of one block, mean over its layers; the standard errors are over windows."""

    came_in: Score  # ‖W (X̃ - X)‖²
    added: Score  # ‖(W - Ŵ) X‖²
    total: Score  # ‖W X̃ - Ŵ X‖²
    taken_back: Score  # came_in + added - total, as a share of came_in + added


@torch.no_grad()
def measure(
    original: nn.Module, compressed: dict[str, nn.Module], calibration, *, first: int | None = None
) -> dict[str, list[Drift]]:
    """{method: [Drift of each block]} of models whose blocks and layers have the names of the original's.

    compressed: models by method, such as {"gptq": model, "gptaq": model}. All of them run through `calibration`
    (windows of text, or token ids) side by side, a block at a time; `first` looks at only so many blocks.
    """
    from lib.sources import texts

    tokens = texts.tokens(calibration, original)
    models = [original, *compressed.values()]
    captured = [capture.capture(model, tokens) for model in models]
    streams = [each.hidden for each in captured]
    found: dict[str, list[Drift]] = {method: [] for method in compressed}
    for index, together in enumerate(zip(*(blocks(model)[:first] for model in models), strict=True)):
        seen = []
        for place, (block, each) in enumerate(zip(together, captured)):
            streams[place], reached = capture.record(block, linears(block), streams[place], each.calls[index])
            seen.append(reached)
        for method, block, reached in zip(compressed, together[1:], seen[1:]):
            other = linears(block)
            shares = [
                _shares(layer.weight, other[name].weight, seen[0][name], reached[name])
                for name, layer in linears(together[0]).items()
            ]
            found[method].append(_drift(torch.stack(shares).double().mean(0)))
    return found


def _shares(weight: Tensor, other: Tensor, clean: Tensor, drifted: Tensor) -> Tensor:
    """[windows, 3]: the powers of what came in, of what was added and of both together, over the answer's power.

    `other` is rounded to the type of the inputs, as a quantized layer does it; products of bfloat16 numbers are exact.
    """
    linear, other = nn.functional.linear, other.to(drifted.dtype).float()
    exact = drifted.dtype == weight.dtype == torch.bfloat16
    with capture.bfloat16_products() if exact else contextlib.nullcontext():
        answer, before = (linear(each.float(), weight.float()) for each in (clean, drifted))
        after = linear(drifted.float(), other)
    power = answer.square().sum((1, 2)).clamp(min=torch.finfo(torch.float32).tiny)
    parts = (answer - before, before - after, answer - after)
    return torch.stack([part.square_().sum((1, 2)) / power for part in parts], 1)


def _drift(shares: Tensor) -> Drift:
    came_in, added, total = shares.T
    scores = [score.from_values(values, "share of output power", higher_is_better=False) for values in shares.T]
    both = came_in + added
    taken_back = (both - total) / both.where(both > 0, 1)  # nothing came, nothing was taken back
    return Drift(*scores, score.from_values(taken_back, "share of the error", higher_is_better=True))
