"""Which windows a step sees, and at which share of the peak learning rate."""

import math

import torch

WARMUP = 0.05  # share of the steps over which the learning rate rises; then it falls as a cosine


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` of `steps`: a linear rise, then half a cosine down to almost zero."""
    rise = (step + 1) / max(1, round(WARMUP * steps))
    return min(1.0, rise) * (1 + math.cos(math.pi * step / steps)) / 2


def windows(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Indices of the windows of `step`: the next `batch` of endlessly many seeded permutations of `count` windows."""
    chosen = []
    for place in range(step * batch, (step + 1) * batch):
        generator = torch.Generator().manual_seed((seed << 12) + place // count)  # no seed meets another's epochs
        chosen.append(int(torch.randperm(count, generator=generator)[place % count]))
    return chosen
