"""RLOO: its expected gradient is the true one, it learns from rewards, its draws are the model's own and repeat."""

import copy
import math

import pytest
import torch

from lib.alignment import on_policy
from lib.sources.conversations import Conversation, Turn
from lib.trainers import loop, policy_gradient
from tests import tiny

TOKENIZER = tiny.tokenizer()


def asked(count=6):
    conversations = [Conversation((Turn("user", "Why" + "?" * place),), f"row {place}") for place in range(count)]
    return on_policy.questions(conversations, TOKENIZER, length=99)


def plain(answered):
    """The share of an answer's characters that are plain ones."""
    return [sum(char < "\x80" for char in each.turns[-1].text) / max(1, len(each.turns[-1].text)) for each in answered]


def test_the_expected_gradient_of_two_samples_is_that_of_the_expected_reward():
    z = torch.tensor([0.3, -0.5, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 0.2, -0.5, 2.0], dtype=torch.float64)
    exact = torch.autograd.grad((z.softmax(-1) * rewards).sum(), z)[0]
    found = torch.zeros(4, dtype=torch.float64)
    shares = z.detach().softmax(-1)
    for i in range(4):
        for j in range(4):
            logp = z.log_softmax(-1)[[i, j]]
            advantage = policy_gradient.advantages(rewards[[i, j]], 2)
            loss = policy_gradient.rloo(logp, logp.detach(), advantage).mean()
            found += shares[i] * shares[j] * torch.autograd.grad(loss, z)[0]
    torch.testing.assert_close(-found, exact)


def test_baselines_are_the_others_mean_and_ratios_are_clipped():
    found = policy_gradient.advantages(torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0]), 3)
    assert found.tolist() == [-3.0, -1.5, 4.5, -1.5, -1.5, 3.0]
    logp = torch.tensor([0.5, 0.5, -0.5, -0.5]).requires_grad_()
    loss = policy_gradient.rloo(logp, torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]))
    e = math.exp(0.5)
    assert loss.tolist() == pytest.approx([-1.2, e, -1 / e, 0.8])
    gradient = torch.autograd.grad(loss.sum(), logp)[0]
    assert gradient.tolist() == pytest.approx([0, e, -1 / e, 0])  # what is far enough in its direction goes no farther


def test_rewards_that_teach_nothing_are_refused():
    for rewards, samples in ((torch.ones(3), 2), (torch.ones(3), 1)):
        with pytest.raises(ValueError, match=r"the mean of the other answers .* 2 or more are allowed"):
            policy_gradient.advantages(rewards, samples)
    with pytest.raises(ValueError, match="reward 1 is nan"):
        policy_gradient.advantages(torch.tensor([1.0, math.nan]), 2)
    for changed in (dict(samples=1), dict(new_tokens=0), dict(beta=-1), dict(beta=0.1, reference=None)):
        with pytest.raises(ValueError, match="a reference is needed for a beta above 0"):
            on_policy.Loss(TOKENIZER, asked(), plain, **{"reference": tiny.llama(), **changed})
    with pytest.raises(ValueError, match="none of 6 questions has at most 3 tokens"):
        on_policy.questions(asked().conversations, TOKENIZER, length=3)


def test_a_model_learns_what_is_rewarded_near_its_reference():
    reference = tiny.llama(num_hidden_layers=1, initializer_range=0.02)
    model, data = copy.deepcopy(reference), asked()
    loss = on_policy.Loss(TOKENIZER, data, plain, reference=reference, samples=4, beta=0.01, new_tokens=6)
    history = loop.train_(model, data, loss, steps=12, batch=6, micro_batch=6, learning_rate=2e-2)
    rewards = history.measures["reward"]
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.2
    assert history.measures["kl"][0] == pytest.approx(0, abs=1e-4) and history.measures["kl"][-1] > 0.1
    assert 0 < history.measures["entropy"][-1] < history.measures["entropy"][0] <= math.log(256) + 1e-4
    assert history.measures["tokens"][0] <= 6


def draws(model, *, step=0, place=0, seed=0):
    loss = on_policy.Loss(TOKENIZER, asked(), plain, samples=2, beta=0.0, new_tokens=5, seed=seed)
    row = asked()[place]
    ids = row["input_ids"][None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = loss._answers(model, batch | {"window": torch.tensor([place]), "step": torch.tensor([step])})
    return [each.token_ids for each, _ in found]


def test_draws_are_the_models_own_and_come_again():
    model = tiny.llama(num_hidden_layers=1)
    first = draws(model)
    torch.manual_seed(5)
    assert draws(model) == first and first[0] != first[1]
    assert all(other != first for other in (draws(model, step=1), draws(model, seed=1)))
    model.generation_config.repetition_penalty = 1e6  # a checkpoint's setting is no part of its distribution
    model.generation_config.top_k = 1
    assert draws(model) == first
