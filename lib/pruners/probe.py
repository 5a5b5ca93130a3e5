"""Predicts speed and memory of a pruned model by straight lines through two or three measured depths.

Equal blocks take equal time and memory, and the rest (embeddings, norm, head) does not depend on their number, so that
seconds and bytes are linear in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from lib import files
from lib.metrics import speed, throughput
from lib.models.blocks import blocks
from lib.pruners.drop import without

PHASES = {
    "decode": "tpot",
    "prefill": "ttft",
}  # phase that `tokens_per_second` counts -> metric of `speed` for the line


@dataclass(frozen=True)
class Line:
    """y = fixed + each · blocks, a least-squares fit to the points `measured`, (blocks, y)."""

    fixed: float
    each: float
    measured: tuple[tuple[int, float], ...]

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]]) -> "Line":
        """The line with the least squared relative errors, so that small and large models have equal weight."""
        points = tuple((int(count), float(value)) for count, value in points)
        if len({count for count, _ in points}) < 2:
            raise ValueError(f"points {points} lie at one depth; a line needs two; measure another depth.")
        counts, values = np.array(points).T
        rows = np.stack([1 / values, counts / values], axis=1)
        fixed, each = np.linalg.lstsq(rows, np.ones(len(points)), rcond=None)[0]
        return cls(float(fixed), float(each), points)

    def at(self, count: int) -> float:
        """y for a model with that many blocks."""
        return self.fixed + self.each * count

    def times(self, factor: float) -> "Line":
        """The line multiplied by `factor`."""
        points = tuple((count, factor * value) for count, value in self.measured)
        return Line(factor * self.fixed, factor * self.each, points)


def depths(count: int) -> list[int]:
    """The depths to measure, of `count` blocks: all, two thirds, one third (of very few blocks: all and one)."""
    return sorted({count, max(1, round(2 * count / 3)), max(1, round(count / 3))}, reverse=True)


def seconds(model: nn.Module, phase: str, *, prompt: int = 128, new_tokens: int = 32, rounds: int = 3) -> Line:
    """Seconds per token of `phase` ("decode" or "prefill", batch 1) as a line in the number of blocks.

    The depths are measured in turns, on models that share the weights of `model` and lack its last blocks.
    Raises ValueError for another phase, or a model with one block.
    """
    known(phase)
    systems = {str(count): shallow for count, shallow in _shallower(model).items()}
    found = speed.measure(systems, prompt=prompt, new_tokens=new_tokens, rounds=rounds)
    each = prompt if phase == "prefill" else 1
    return Line.through([(int(count), found[count][PHASES[phase]].value / each) for count in systems])


def known(phase: str) -> str:
    """`phase`, if it is one of `PHASES`; ValueError with the choices otherwise."""
    if phase not in PHASES:
        raise ValueError(f"phase={phase!r} is unknown; {files.choices(phase, PHASES)}")
    return phase


def memory(model: nn.Module, *, length: int = throughput.LENGTH) -> Line:
    """Bytes that the protocol of `metrics.throughput` finds, as a line in the number of blocks."""
    shallow = list(_shallower(model).items())
    systems = {str(count): each for count, each in (shallow[0], shallow[-1])}
    found = throughput.measure(systems, length=length, rounds=1)
    return Line.through([(int(count), found[count]["memory"].value) for count in systems])


def _shallower(model: nn.Module) -> dict[int, nn.Module]:
    count = len(blocks(model))
    if count < 2:
        raise ValueError(f"{type(model).__name__} has {count} block; none can go; give a model with two or more.")
    return {left: without(model, range(left, count)) if left < count else model for left in depths(count)}
