"""Tasks: samples that ask a model for something, and a rule that scores the answers.

A sample is one line of data, formed by one template. What it asks is a `Likelihood` (how probable is this continuation
of this context) or a `Generation` (continue this prompt); the answer is an `Outcome` or a string. Nothing here depends
on a model: anything that answers requests can be evaluated.
"""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Likelihood:
    """A continuation to be scored after a context; the context may be empty."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Generation:
    """Text to be generated greedily after a prompt: it ends before the first of `until`, or at `max_new_tokens`."""

    prompt: str
    until: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Outcome:
    """The answer to a `Likelihood`.

    logprob: sum over the continuation's tokens, natural logarithm.
    greedy: whether greedy decoding would have produced the continuation.
    tokens: how many tokens the continuation has.
    """

    logprob: float
    greedy: bool
    tokens: int


@dataclass(frozen=True)
class Sample:
    """One line of data, formatted by one template.

    id: stable, unique within the task.
    group: what it shares with others (subject, passage), for clustered errors.
    requests: the model's requests, in the order of the answers that the scorer takes.
    target: the reference for the scorer; JSON-able.
    """

    id: str
    group: str
    requests: tuple[Likelihood | Generation, ...]
    target: object


@dataclass(frozen=True)
class Task:
    """Samples and how their answers are scored.

    metrics: the names of the per-sample numbers that `score` returns, the main one first.
    chance, constant: metric -> what guessing at random, and what the best constant answer scores on these samples.
    data: source, sha256, licence, citation, split, shots, chat, by which evaluations are distinguished.
    score: (sample, answers in the order of its requests) -> metric -> number.
    aggregate: metric -> function(list of (sample, answers)) for numbers that are not means (corpus BLEU, F1, AUROC).
    """

    name: str
    samples: list[Sample]
    metrics: tuple[str, ...]
    chance: dict[str, float]
    constant: dict[str, float]
    data: dict
    score: Callable[[Sample, list[Outcome | str]], dict[str, float]]
    aggregate: dict[str, Callable] = field(default_factory=dict)
