"""Speed of lossless decoding: tokens per step, acceptance, time per token; same sampler and limit for all systems.

The systems answer every prompt in turns (A B A B), so that a slower phase of the machine affects all of them; speed-ups
are computed within prompts.
"""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lib.decoding.draft_controller import DraftController
from lib.decoding.generate import Generation, generate
from lib.decoding.sampling import Sampling
from lib.decoding.sessions import Session
from lib.decoding.verify import Drafter
from lib.metrics.score import Score, bootstrap


@dataclass
class System:
    """One way to decode: a model, and its drafter (none: plain decoding)."""

    session: Session
    drafter: Drafter | None = None
    controller: DraftController | None = None


def measure(
    systems: dict[str, System],
    prompts: list[Tensor],
    *,
    new_tokens: int = 64,
    eos: int | Collection[int] | None = (),
    sampling: dict | None = None,
    seed: int = 0,
) -> dict[str, list[Generation]]:
    """The answers of every system to every prompt (LongTensors [length]), greedy unless `sampling` is given.

    sampling: arguments of `Sampling`, the same for all systems; prompt i has seed `seed` + i in each of them. Every
    system answers the first prompt once before, which does not count. Raises ValueError for no systems and no prompts.
    """
    if not systems or not prompts:
        raise ValueError(f"{len(systems)} systems and {len(prompts)} prompts; one of each or more is needed.")
    found = {name: [] for name in systems}
    for place in (-1, *range(len(prompts))):
        for name, system in systems.items():
            drawn = Sampling(**(sampling or {}), seed=seed + max(place, 0))
            if getattr(system.drafter, "sampling", None) is not None:
                system.drafter.sampling = drawn  # a drafting model draws as the model does
            answer = generate(
                system.session,
                prompts[max(place, 0)],
                new_tokens=min(new_tokens, 8) if place < 0 else new_tokens,
                drafter=system.drafter,
                controller=system.controller,
                sampling=drawn,
                eos=eos,
            )
            if place >= 0:
                found[name].append(answer)
    return found


def tokens_per_step(answers: list[Generation]) -> Score:
    """Tokens per pass of the model, over all answers; plain decoding has 1."""
    counts = [[len(answer.token_ids), len(answer.steps)] for answer in answers]
    return Score(_share(counts), bootstrap(counts, _share), len(counts), "tokens/step", True, 1.0)


def seconds_per_token(answers: list[Generation]) -> Score:
    """Seconds of all steps per token, over all answers, without reading the prompts."""
    times = [[answer.seconds, len(answer.token_ids)] for answer in answers]
    return Score(_share(times), bootstrap(times, _share), len(times), "s", False)


def speed_up(answers: list[Generation], reference: list[Generation]) -> Score:
    """Seconds per token of `reference` over those of `answers` to the same prompts; above 1 is faster.

    The standard error is the bootstrap's over prompts, both systems of a prompt drawn together.
    """
    if len(answers) != len(reference):
        raise ValueError(f"{len(answers)} answers against {len(reference)}; compare answers to the same prompts.")
    pairs = [
        [theirs.seconds, len(theirs.token_ids), ours.seconds, len(ours.token_ids)]
        for ours, theirs in zip(answers, reference)
    ]
    return Score(_ratio(pairs), bootstrap(pairs, _ratio), len(pairs), "ratio", True, 1.0)


def identical(answers: list[Generation], reference: list[Generation]) -> Score:
    """The share of prompts whose answers agree in every token."""
    same = [float(ours.token_ids == theirs.token_ids) for ours, theirs in zip(answers, reference, strict=True)]
    return Score(np.mean(same), bootstrap(same), len(same), "share", True)


def acceptance(answers: list[Generation]) -> list[int]:
    """How many of the steps that drafted had 0, 1, 2, ... of their tokens accepted, [most accepted + 1]."""
    counts = Counter(step.accepted for answer in answers for step in answer.steps if step.drafted)
    return [counts[accepted] for accepted in range(max(counts, default=-1) + 1)]


def accepted_shares(answers: list[Generation]) -> list[Score]:
    """`acceptance` as shares of the steps that drafted, with the binomial standard error."""
    counts = acceptance(answers)
    total = sum(counts)
    shares = [count / total for count in counts]
    return [Score(share, math.sqrt(share * (1 - share) / total), total, "share", None) for share in shares]


def _share(pairs, axis: int = 0):
    """Sum over sum of pairs [..., 2] along `axis`."""
    total = np.asarray(pairs, dtype=np.float64).sum(axis)
    return total[..., 0] / total[..., 1]


def _ratio(rows, axis: int = 0):
    """Seconds per token of the first pair of columns over those of the second, rows [..., 4] summed along `axis`."""
    total = np.asarray(rows, dtype=np.float64).sum(axis)
    return (total[..., 0] / total[..., 1]) / (total[..., 2] / total[..., 3])
