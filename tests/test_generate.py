"""The loop: greedy answers equal plain greedy whatever is drafted, and end where plain ones end."""

import pytest
import torch

from lib.decoding.generate import generate
from lib.decoding.lookup import Lookup
from lib.decoding.sampling import Sampling
from lib.decoding.sessions import ModelSession
from tests import tabular, tiny


@pytest.fixture(scope="module")
def model():
    return tiny.llama(num_hidden_layers=2, initializer_range=0.15)


@pytest.fixture(scope="module")
def session(model):
    return ModelSession(model)


def prompts(count, seed=0, longest=24):
    """Random prompts of 1 to `longest` tokens, half of them from few tokens, so that they repeat themselves."""
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        yield torch.randint(4 if index % 2 else 256, (length,), generator=generator)


def test_plain_greedy_equals_transformers(model, session):
    for prompt in prompts(20):
        ours = generate(session, prompt, new_tokens=20, eos=0)
        with torch.no_grad():
            theirs = model.generate(prompt[None], max_new_tokens=20, do_sample=False)[0, len(prompt) :]
        assert ours.token_ids == theirs.tolist()
        assert ours.tokens_per_step == 1 and all(step.drafted == 0 for step in ours.steps)


def test_lookup_is_token_identical_on_hundreds_of_prompts(session):
    fewer, ended = 0, {"eos": 0, "length": 0}
    for prompt in prompts(200):
        plain = generate(session, prompt, new_tokens=16, eos=range(8))
        drafted = generate(session, prompt, new_tokens=16, eos=range(8), drafter=Lookup(max_ngram=3, draft_length=6))
        assert drafted.token_ids == plain.token_ids and drafted.reason == plain.reason
        fewer += len(plain.steps) - len(drafted.steps)
        ended[plain.reason] += 1
    assert fewer > 200 and min(ended.values()) > 15  # it drafts, and both ways to end occur


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_any_draft_is_token_identical(session, wrong):
    for prompt in prompts(30, seed=1):
        plain = generate(session, prompt, new_tokens=17, eos=range(4), sampling=Sampling(repetition_penalty=1.3))
        drafter = tabular.Fixed(prompt.tolist() + plain.token_ids, length=5, wrong=wrong)
        drafted = generate(
            session, prompt, new_tokens=17, eos=range(4), drafter=drafter, sampling=Sampling(repetition_penalty=1.3)
        )
        assert drafted.token_ids == plain.token_ids and drafted.reason == plain.reason


def test_eos_and_length_inside_a_draft(session):
    prompt = torch.tensor([7, 8, 9])
    text = generate(session, prompt, new_tokens=12).token_ids
    whole = tabular.Fixed(prompt.tolist() + text + [1] * 20, length=8)
    end = next(place for place in range(2, 7) if text[place] not in text[:place])
    found = generate(session, prompt, new_tokens=12, eos=text[end], drafter=whole)
    assert found.token_ids == text[: end + 1] and found.reason == "eos"
    assert found.steps[0].accepted > found.steps[0].produced - 1  # the draft went on behind the end
    for cap in range(1, 12):
        found = generate(session, prompt, new_tokens=cap, drafter=whole)
        assert found.token_ids == text[:cap] and found.reason == "length"
        assert sum(step.produced for step in found.steps) == cap


def test_stop_strings_end_the_answer_inside_a_draft(session):
    prompt, tokenizer = torch.tensor([70, 80]), tiny.tokenizer()
    # an answer of letters, in which no two of them occur twice in a row; a random model's tokens are random bytes
    letters = tabular.TabularSession(256, seed=3)
    text = [int(b) for b in b"one two. six"]
    for before, last, following in zip([70, 80, *text], [80, *text], text):
        letters.logits[before, last, following] = 50
    for drafter in (None, tabular.Fixed(prompt.tolist() + text, length=9)):
        found = generate(letters, prompt, new_tokens=20, stop=["six", ". "], tokenizer=tokenizer, drafter=drafter)
        assert found.reason == "stop" and found.text == "one two"
        assert found.token_ids == [int(b) for b in b"one two. "]
    found = generate(letters, prompt, new_tokens=12, stop="never", tokenizer=tokenizer)
    assert found.reason == "length" and found.text == "one two. six"


def test_stream_gets_every_token_once_and_in_order(session):
    heard = []
    prompt = torch.tensor([1, 2, 1, 2, 1])
    found = generate(session, prompt, new_tokens=15, drafter=Lookup(), stream=heard.append)
    assert [token for tokens in heard for token in tokens] == found.token_ids and len(heard) == len(found.steps)


def test_sampling_equals_transformers_for_a_seed(model, session):
    options = dict(temperature=0.8, top_k=40, top_p=0.9, repetition_penalty=1.2)
    for seed, prompt in enumerate(prompts(5, seed=2)):
        ours = generate(session, prompt, new_tokens=20, eos=0, sampling=Sampling(**options, seed=seed))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            theirs = model.generate(prompt[None], max_new_tokens=20, do_sample=True, **options)
        assert ours.token_ids == theirs[0, len(prompt) :].tolist()


def test_bad_requests_are_refused_before_anything_is_read(session):
    prompt = torch.tensor([1, 2, 3])
    with pytest.raises(ValueError, match="no tokens were given"):
        generate(session, prompt[:0], new_tokens=4)
    with pytest.raises(ValueError, match="take a row of a batch"):
        generate(session, prompt[None], new_tokens=4)
    with pytest.raises(ValueError, match="new_tokens=0"):
        generate(session, prompt, new_tokens=0)
    with pytest.raises(ValueError, match="context of 512; ask for at most 509"):
        generate(session, prompt, new_tokens=510)
    with pytest.raises(ValueError, match="without a tokenizer"):
        generate(session, prompt, new_tokens=4, stop="x")
    with pytest.raises(ValueError, match="the model knows 0 to 255"):
        generate(session, torch.tensor([1, 256]), new_tokens=4)
    assert len(generate(session, prompt, new_tokens=509).token_ids) == 509


def test_a_draft_of_another_vocabulary_is_refused(session):
    with pytest.raises(ValueError, match="the model knows 0 to 255; use the tokenizer"):
        generate(session, torch.tensor([1, 2]), new_tokens=5, drafter=tabular.Fixed([300] * 9))
