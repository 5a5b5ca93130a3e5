"""Greedy pruning: removes the least important block, scores the remaining ones again, and repeats.

A score measures the cost of removing one block; once it is gone, its neighbours may have become more important. Scoring
again takes n block passes for each removed block instead of n in all.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from lib import files
from lib.jobs import JobState, Results, environment_fingerprint, fingerprint
from lib.metrics import divergence
from lib.models.blocks import blocks
from lib.pruners import importance
from lib.pruners.drop import without
from lib.pruners.one_shot import order

COMPARED = ("divergence",)  # scores that compare with the original, however many blocks are removed


def choose(
    model: nn.Module, tokens: Tensor, met: Callable[[list[int]], bool], *, score: str, free: Sequence[int], state=None
) -> list[int]:
    """Blocks to remove, in order of removal: as few of `free` as possible such that `met(blocks)`.

    tokens: calibration windows [count, length]. state: folder for finished steps, so that a killed job resumes, and
    that a deeper cut goes on where a shallower one ended; another job's folder is refused, with what differs.
    """
    removed: list[int] = []
    with _Steps(state, model, tokens, score=score, free=list(free)) as steps:
        options = {"reference": divergence.remember(model, tokens)} if score in COMPARED else {}
        while not met(removed):
            block = steps.load(len(removed))
            if block is None:
                block, scores = _step(model, tokens, removed, score, free, options)
                steps.save(len(removed), block, scores)
            removed.append(block)
    return removed


def _step(model, tokens, removed, score, free, options) -> tuple[int, dict[int, float]]:
    """(the next block to remove, the scores of all remaining ones), indexed as in the whole model."""
    left = [index for index in range(len(blocks(model))) if index not in removed]
    scores = importance.score(score, without(model, removed), tokens, **options)
    best = order(scores, [place for place, index in enumerate(left) if index in free])
    if not best:
        raise ValueError(
            f"{score} protects all blocks that are left and may go, after {removed}; ask for less, or score by another."
        )
    return left[best[0]], dict(zip(left, scores))


class _Steps(Results):
    """Finished steps in `folder`, one JSON file each (None keeps nothing)."""

    def __init__(self, folder: Path | str | None, model: nn.Module, tokens: Tensor, **job):
        job |= environment_fingerprint("pruners") | fingerprint(model, tokens) if folder else {}
        super().__init__(folder and JobState(folder, method="greedy", **job))

    def load(self, step: int) -> int | None:
        """The block removed in `step`, None where that step is not finished."""
        path = self.folder and self._path(step)
        return json.loads(path.read_text())["block"] if path and path.exists() else None

    def save(self, step: int, block: int, scores: dict[int, float]) -> None:
        """Save which block was removed in `step`, with the scores."""
        if self.folder:
            files.write_text(self._path(step), json.dumps({"block": block, "scores": scores}) + "\n")

    def _path(self, step: int) -> Path:
        return self.folder / f"removed-{step:04d}.json"
