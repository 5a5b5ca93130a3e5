"""Where two generated texts for one prompt diverge, and whether rounding explains it.

Passes of one token and of several sum in different orders, so logits differ in their last digits. Where the two
likeliest tokens are that close, greedy answers may diverge; a gap far above rounding error indicates a bug.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.decoding.sessions import Session, read


@dataclass(frozen=True)
class Divergence:
    """The first token that differs: its place in the answer, both tokens (None: that answer had ended), and logits.

    gap: logit of `ours` minus logit of `theirs` as `first_divergence` read them; infinite where one answer had ended,
    since rounding alone ends no answer (end tokens are part of it): an end or a length was handled wrongly.
    scale: the largest magnitude of the logits, to which rounding errors are proportional.
    """

    place: int
    ours: int | None
    theirs: int | None
    gap: float
    scale: float

    @property
    def relative_gap(self) -> float:
        """|gap| / scale: of the order of 1e-6 for rounding in float32, 1e-2 in bfloat16; infinite as `gap` is."""
        return abs(self.gap) / self.scale


def first_divergence(session: Session, prompt: Tensor, ours: list[int], theirs: list[int]) -> Divergence | None:
    """The first place where the answers `ours` and `theirs` to `prompt` [length] differ; None where they are equal.

    `session` reads the prompt and the shared part anew, in one pass, to give the logits at that place.
    """
    if ours == theirs:
        return None
    pairs = enumerate(zip(ours, theirs))
    place = next((place for place, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    text = torch.cat([prompt.cpu().long(), torch.tensor(ours[:place], dtype=torch.long)])
    session.rewind(0)
    read(session, text[:-1])
    logits = session.extend(text[-1:])[-1]
    a, b = (answer[place] if place < len(answer) else None for answer in (ours, theirs))
    gap = math.inf if None in (a, b) else float(logits[a] - logits[b])
    return Divergence(place, a, b, gap, float(logits.abs().max()))
