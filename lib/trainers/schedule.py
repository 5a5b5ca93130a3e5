"""The order of rows in a training, and its learning-rate schedule."""

import math

import torch

WARMUP = 0.05  # share of the steps over which the learning rate rises; then it falls as a cosine


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` of `steps`: a linear rise, then half a cosine down to almost zero."""
    rise = (step + 1) / max(1, round(WARMUP * steps))
    return min(1.0, rise) * (1 + math.cos(math.pi * step / steps)) / 2


class Order:
    """An endless sequence of random permutations of `count` rows, by `seed`: place -> row."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self._epoch = count, seed, (-1, [])

    def __getitem__(self, place: int) -> int:
        epoch = place // self.count
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed << 12) + epoch)  # the epochs of different seeds differ
            self._epoch = epoch, torch.randperm(self.count, generator=generator)
        return int(self._epoch[1][place % self.count])


def windows(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Indices of the windows of `step`: the next `batch` of endlessly many seeded permutations of `count` windows."""
    order = Order(count, seed)
    return [order[place] for place in range(step * batch, (step + 1) * batch)]
