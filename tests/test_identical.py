"""The report of a first divergence."""

import math

import pytest
import torch

from lib.decoding.generate import generate
from lib.decoding.identical import first_divergence
from lib.decoding.sessions import ModelSession
from tests import tiny


def test_the_first_difference_and_its_gap():
    model = tiny.llama(num_hidden_layers=2)
    session, prompt = ModelSession(model), torch.tensor([5, 6, 7])
    answer = generate(session, prompt, new_tokens=8).token_ids
    assert first_divergence(session, prompt, answer, list(answer)) is None
    other = [*answer[:3], (answer[3] + 1) % 256, *answer[4:]]
    found = first_divergence(session, prompt, answer, other)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7, *answer[:3]]])).logits[0, -1]
    assert (found.place, found.ours, found.theirs) == (3, answer[3], other[3])
    assert found.gap == pytest.approx(float(logits[answer[3]] - logits[other[3]]), abs=1e-4) and found.gap > 0
    assert found.relative_gap == pytest.approx(found.gap / float(logits.abs().max()), rel=1e-3)


def test_an_answer_that_ends_early_is_no_matter_of_rounding():
    session, prompt = ModelSession(tiny.llama(num_hidden_layers=2)), torch.tensor([5, 6, 7])
    answer = generate(session, prompt, new_tokens=8).token_ids
    for ours, theirs, tokens in (answer[:5], answer, (None, answer[5])), (answer, answer[:5], (answer[5], None)):
        found = first_divergence(session, prompt, ours, theirs)
        assert (found.place, found.ours, found.theirs) == (5, *tokens)
        assert found.gap == found.relative_gap == math.inf
    assert first_divergence(session, prompt, [], answer).relative_gap == math.inf
