"""Speculative drafts: the drafting model's own continuations, a session that keeps up, vocabularies that match."""

import pytest
import torch

from lib.decoding.generate import generate
from lib.decoding.sampling import Sampling
from lib.decoding.sessions import ModelSession
from lib.decoding.speculative import Speculative, check_vocabularies, expected_tokens
from tests import tabular, tiny


@pytest.fixture(scope="module")
def target():
    return tiny.llama(num_hidden_layers=2, initializer_range=0.15)


@pytest.fixture(scope="module")
def small():
    return tiny.llama(num_hidden_layers=1, initializer_range=0.15)


def test_greedy_drafts_are_the_smaller_models_own_answer(small):
    prompt = torch.tensor([3, 1, 4, 1, 5])
    alone = generate(ModelSession(small), prompt, new_tokens=6).token_ids
    drafter = Speculative(ModelSession(small), draft_length=6)
    assert drafter.draft(prompt).token_ids.tolist() == alone
    assert drafter.draft(prompt, 2).token_ids.tolist() == alone[:2]
    other = torch.tensor([3, 1, 7])  # a text that shares two tokens
    assert drafter.draft(other, 1).token_ids.tolist() == generate(ModelSession(small), other, new_tokens=1).token_ids


def test_greedy_is_token_identical_on_many_prompts(target, small):
    session, drafter = ModelSession(target), Speculative(ModelSession(small), draft_length=3)
    fewer = 0
    for seed in range(40):
        prompt = tiny.tokens(1, 1 + seed % 12, seed=seed)[0]
        plain = generate(session, prompt, new_tokens=12, eos=range(6))
        drafted = generate(session, prompt, new_tokens=12, eos=range(6), drafter=drafter)
        assert drafted.token_ids == plain.token_ids and drafted.reason == plain.reason
        fewer += len(plain.steps) - len(drafted.steps)
    assert fewer > 0


def test_the_model_as_its_own_drafter_is_always_right(target):
    session, drafter = ModelSession(target), Speculative(ModelSession(target), draft_length=3)
    for sampling in (Sampling(), Sampling(temperature=1.0, top_k=20)):
        drafter.sampling = sampling
        found = generate(session, torch.tensor([9, 8, 7]), new_tokens=16, drafter=drafter, sampling=sampling)
        assert all(step.accepted == step.drafted for step in found.steps) and len(found.steps) == 4


def test_probabilities_are_those_that_the_draft_was_drawn_from():
    table = tabular.TabularSession(5, seed=4)
    drafter = Speculative(table, draft_length=3, sampling=Sampling(temperature=0.7))
    found = drafter.draft(torch.tensor([0, 1]))
    text = [0, 1, *found.token_ids.tolist()]
    for place in range(3):
        expected = (table.logits[text[place], text[place + 1]] / 0.7).softmax(-1)
        torch.testing.assert_close(found.probabilities[place], expected)


def test_a_session_reads_only_what_is_new():
    table = tabular.TabularSession(5, seed=4)
    drafter = Speculative(table, draft_length=3)
    text = torch.arange(30) % 5
    guesses = drafter.draft(text).token_ids
    assert table.passes == [29, 1, 1, 1]
    drafter.draft(torch.cat([text, guesses, torch.tensor([0])]))
    assert table.passes[4:] == [2, 1, 1]  # the last guess was never read, nor the token after it


def test_no_draft_where_the_drafting_model_has_no_room():
    session = ModelSession(tiny.llama(num_hidden_layers=1, max_position_embeddings=10))
    drafter = Speculative(session, draft_length=4)
    assert [len(drafter.draft(torch.zeros(n, dtype=torch.long)).token_ids) for n in (5, 8, 10, 11)] == [4, 3, 1, 0]


def test_vocabularies_must_match(target, small):
    check_vocabularies(target, small)
    with pytest.raises(ValueError, match="a vocabulary of 300, the model 256"):
        check_vocabularies(target, tiny.llama(num_hidden_layers=1, vocab_size=300))
    other = tiny.llama(num_hidden_layers=1)
    other.tokenizer.add_tokens(["<extra>"])
    with pytest.raises(ValueError, match=r"tokenizers differ, for instance in '<extra>' \(id None"):
        check_vocabularies(target, other)
    other.tokenizer = None
    check_vocabularies(target, other)
    with pytest.raises(ValueError, match="one vocabulary"):
        wide = Speculative(tabular.TabularSession(300), draft_length=2, sampling=Sampling(temperature=1.0))
        generate(ModelSession(target), torch.tensor([1, 2]), new_tokens=5, drafter=wide, sampling=wide.sampling)
    with pytest.raises(ValueError, match="draft_length=0"):
        Speculative(ModelSession(small), draft_length=0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_expected_tokens_is_the_mean_of_its_distribution(alpha):
    for gamma in (1, 4, 7):
        # k accepted and then a rejection: (1 - α) α^k; all of them: α^γ
        mean = sum((k + 1) * alpha**k * (1 - alpha) for k in range(gamma)) + (gamma + 1) * alpha**gamma
        assert expected_tokens(alpha, gamma) == pytest.approx(mean)
