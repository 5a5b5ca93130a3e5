"""Lossless sampling: every outcome of the real loop enumerated with its exact probability, and 1e5 draws counted."""

import itertools
import math
from collections import Counter

import pytest
import torch

from lib.decoding.generate import generate
from lib.decoding.lookup import Lookup
from lib.decoding.sampling import Sampling
from lib.decoding.speculative import Speculative
from lib.decoding.verify import NOTHING, Draft, verify
from tests import tabular

PROMPT = torch.tensor([0, 1, 2, 0, 1])
SETTINGS = [
    dict(temperature=1.0),
    dict(temperature=0.7, top_k=3),
    dict(temperature=1.3, top_p=0.8, repetition_penalty=1.5),
]


def exact(session, sampling, length, vocabulary):
    """P(answer) of plain sampling by the chain rule: the product of the probabilities of its tokens."""
    found = {}
    for answer in itertools.product(range(vocabulary), repeat=length):
        text, weight = PROMPT.tolist(), 1.0
        for token in answer:
            logits = session.logits[text[-2], text[-1]]
            weight *= float(sampling.probabilities(logits, torch.tensor(text))[token])
            text.append(token)
        found[answer] = weight
    return found


def enumerated(session, sampling, drafter, length):
    """P(answer) of the loop, added up over all its random choices."""
    found, steps = {}, 0
    for answer, weight in tabular.paths(
        sampling,
        lambda: generate(session, PROMPT, new_tokens=length, sampling=sampling, drafter=drafter()),
    ):
        key = tuple(answer.token_ids)
        found[key] = found.get(key, 0.0) + weight
        steps += weight * len(answer.steps)
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    return found, steps


def assert_equal(found, expected):
    for answer, weight in expected.items():
        assert found.get(answer, 0.0) == pytest.approx(weight, abs=2e-6), answer


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_lookup_has_the_distribution_of_plain_sampling(settings):
    session = tabular.TabularSession(5, seed=1)
    for before, last, following in (0, 1, 2), (1, 2, 0), (2, 0, 1):
        session.logits[before, last, following] += 2  # what the prompt repeats is likely, but not certain
    sampling = tabular.Scripted(**settings)
    found, steps = enumerated(session, sampling, lambda: Lookup(max_ngram=2, draft_length=3, adaptive=False), 3)
    assert_equal(found, exact(session, sampling, 3, 5))
    assert steps < 2.99  # drafts do get accepted


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_speculative_has_the_distribution_of_plain_sampling(settings):
    vocabulary = 4 if settings == SETTINGS[0] else 3
    session, small = tabular.TabularSession(vocabulary, seed=1), tabular.TabularSession(vocabulary, seed=2)
    sampling = tabular.Scripted(**settings)
    found, steps = enumerated(session, sampling, lambda: Speculative(small, draft_length=2, sampling=sampling), 3)
    assert_equal(found, exact(session, sampling, 3, vocabulary))
    assert steps < 2.9


def test_the_enumeration_finds_a_biased_rule():
    """Accepting every draft, or drawing from p after a rejection, changes the distribution, and is noticed."""

    class Biased(tabular.Scripted):
        def accept(self, probability):
            return super().accept(math.sqrt(min(1.0, probability)))

    session, sampling = tabular.TabularSession(5, seed=1), Biased(temperature=1.0)
    found, _ = enumerated(session, sampling, lambda: Lookup(max_ngram=2, draft_length=3), 2)
    expected = exact(session, sampling, 2, 5)
    assert max(abs(found.get(answer, 0.0) - weight) for answer, weight in expected.items()) > 0.01


def chi_square(counts, expected):
    """Pearson's statistic, and the value that it stays below with probability 0.999 (Wilson and Hilferty 1931)."""
    degrees = len(counts) - 1
    statistic = sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected))
    return statistic, degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


class Remembering(Sampling):
    """Turns each row of logits into probabilities once: all steps below read the same two."""

    def probabilities(self, logits, history):
        found = vars(self).setdefault("found", {})
        if logits.data_ptr() not in found:
            found[logits.data_ptr()] = super().probabilities(logits, history)
        return found[logits.data_ptr()]


@pytest.mark.parametrize("drafted", [False, True], ids=["point", "distribution"])
def test_chi_square_of_many_draws(drafted):
    """Pairs of tokens from 100,000 steps that draft one token: distributed as p_1(x) p_2(y | x)."""
    draws, vocabulary = 100_000, 5
    generator = torch.Generator().manual_seed(3)
    p = torch.randn(3, vocabulary, generator=generator).softmax(-1)
    q = torch.randn(vocabulary, generator=generator).softmax(-1)
    guesses = torch.multinomial(q, draws, replacement=True, generator=generator)
    sampling, history = Remembering(temperature=1.0, seed=4), torch.tensor([0, 0])
    logits, drafts = p[:2].log(), [Draft(x[None], q[None] if drafted else None) for x in torch.arange(vocabulary)]
    seen = Counter(tuple(verify(logits, drafts[guess], history, sampling)) for guess in guesses.tolist())
    counts = torch.zeros(vocabulary + 1, vocabulary)  # the last row: a draft was rejected, one token came out
    for found, count in seen.items():
        counts[found if len(found) == 2 else (vocabulary, found[0])] = count
    first = counts[:vocabulary].sum(1) + counts[vocabulary]
    statistic, bound = chi_square(first.tolist(), (draws * p[0]).tolist())
    assert statistic < bound
    accepted = float(counts[:vocabulary].sum())
    # theorem 3.5: the share of accepted drafts is the sum of min(p, q); a chosen draft is accepted with p(x)
    share = float(torch.minimum(p[0], q).sum()) if drafted else float((p[0] * q).sum())
    assert accepted / draws == pytest.approx(share, abs=4 * math.sqrt(share / draws))
    statistic, bound = chi_square(counts[:vocabulary].sum(0).tolist(), (accepted * p[1]).tolist())
    assert statistic < bound


def test_greedy_accepts_the_longest_agreement():
    logits = torch.eye(4)[[1, 2, 3, 0]]
    for guesses, kept in ([1, 2, 3], [1, 2, 3, 0]), ([1, 0, 3], [1, 2]), ([0, 2, 3], [1]), ([], [1]):
        rows = logits[: len(guesses) + 1]
        history = torch.tensor([0, *guesses])
        assert verify(rows, Draft(torch.tensor(guesses, dtype=torch.long)), history, Sampling()) == kept


def test_drafts_that_do_not_fit_are_refused():
    logits, history, sampling = torch.zeros(2, 4), torch.tensor([0, 1]), Sampling(temperature=1.0)
    one = torch.tensor([1])
    with pytest.raises(ValueError, match="vocabulary of 4; both must have one"):
        verify(logits, Draft(one, torch.ones(1, 5) / 5), history, sampling)
    with pytest.raises(ValueError, match="ids up to 4, the model knows 0 to 3"):
        verify(logits, Draft(torch.tensor([4])), history, sampling)
    with pytest.raises(ValueError, match="2 rows of logits for a draft of 0"):
        verify(logits, NOTHING, history, sampling)
    for broken in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            verify(torch.full((2, 4), broken), Draft(one), history, sampling)
    with pytest.raises(ValueError, match="not finite"):
        verify(torch.full((2, 4), float("nan")), Draft(one), history, Sampling())
