"""Error propagation: how much of a compressed layer's output error it inherits, and how much its own rounding adds.

A layer with weights W computes W X̃ in the original model. In a compressed model it has weights Ŵ and inputs X that the
layers before it have changed, so its outputs differ by

    W X̃ - Ŵ X  =  W (X̃ - X)  +  (W - Ŵ) X
                   inherited       own

If the two parts are uncorrelated, their powers add up to the power of the difference. If a method makes the layer's own
error oppose the inherited one, the difference has less power: the layer cancels part of the drift. All powers are
shares of ‖W X̃‖²; a layer whose outputs are zero has a difference of 1.
"""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.metrics import score
from lib.metrics.score import Score
from lib.models import capture
from lib.models.blocks import blocks, linears
from lib.sources import texts


@dataclass(frozen=True)
class Drift:
    """Output errors of one block, averaged over its layers; standard errors are over windows."""

    inherited: Score  # ‖W (X̃ - X)‖²
    own: Score  # ‖(W - Ŵ) X‖²
    total: Score  # ‖W X̃ - Ŵ X‖²
    cancelled: Score  # inherited + own - total, as a share of inherited + own


@torch.no_grad()
def measure(
    original: nn.Module, compressed: dict[str, nn.Module], calibration, *, first: int | None = None
) -> dict[str, list[Drift]]:
    """{method: [Drift of each block]} for models whose blocks and layers are named as in the original.

    compressed: models by method, such as {"gptq": model, "gptaq": model}. All of them run through `calibration`
    (windows of text, or token ids) side by side, a block at a time; `first` restricts it to so many blocks.
    """
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
    """[windows, 3]: powers of the inherited error, of the own error and of both together, over the output's power.

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
    inherited, own, total = shares.T
    scores = [score.from_values(values, "share of output power", higher_is_better=False) for values in shares.T]
    both = inherited + own
    cancelled = (both - total) / both.where(both > 0, 1)  # without any error nothing is cancelled
    return Drift(*scores, score.from_values(cancelled, "share of the error", higher_is_better=True))
