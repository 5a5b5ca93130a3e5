"""Position tables that change with the length: no answer depends on the requests beside it, or on what was kept."""

import copy
import functools

import pytest
import torch
import transformers

from lib.decoding import generate as loop
from lib.decoding.lookup import Lookup
from lib.decoding.sessions import ModelSession
from lib.decoding.speculative import Speculative
from lib.evaluation.local import Local
from lib.metrics import perplexity
from lib.models import logits, rotary
from lib.tasks.task import Generation, Likelihood
from tests import tiny

SIZES = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "pad_token_id": 0}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.15, "bos_token_id": 0}
ORIGINAL = 24
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0 + 0.1 * place for place in range(8)], "long_factor": [3.0 + place for place in range(8)],
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
KINDS = {
    "phi3 longrope": ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": ORIGINAL}),
    "llama longrope": ("Llama", {"rope_parameters": LONG}),
    "gemma3 longrope": (
        "Gemma3",
        {
            "rope_parameters": {"full_attention": LONG, "sliding_attention": PLAIN}, "head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64,
        },
    ),
    "llama dynamic": ("Llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": ORIGINAL}),
    "phi dynamic": (
        "Phi",
        {"rope_parameters": {**DYNAMIC, "partial_rotary_factor": 1.0}, "max_position_embeddings": ORIGINAL},
    ),
}  # fmt: skip


def build(name):
    """A model that has read nothing before."""
    return copy.deepcopy(_built(name))


@functools.cache
def _built(name):
    family, settings = KINDS[name]
    config = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{config}Config")(**{"max_position_embeddings": 128, **SIZES, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    model.tokenizer = tiny.tokenizer()
    return model


class Longer(Local):
    longest = 128  # where dynamic tables are used, more is read than the model has positions


def engine(name):
    return Longer(build(name))


def session(name):
    made = ModelSession(build(name))
    made.limit = 128
    return made


@torch.no_grad()
def alone(name, ids):
    """Logits [length, vocabulary] of a model that has read nothing before, by one forward pass without a cache."""
    return build(name)(input_ids=torch.as_tensor(ids)[None], use_cache=False).logits[0].float()


@functools.cache
def greedy(name, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(alone(name, ids)[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", KINDS)
def test_the_lengths_at_which_tables_change_are_known(name):
    tables = rotary.Tables.of(build(name))
    assert tables.change and tables.alike(ORIGINAL) and not tables.alike(ORIGINAL + 1)
    assert tables.kind(1) == tables.kind(ORIGINAL) != tables.kind(ORIGINAL + 1)
    ids = tiny.tokens(1, ORIGINAL + 2)[0]
    model = build(name)
    for length in (ORIGINAL - 1, ORIGINAL + 1):  # what the tables do, seen from outside
        rest = torch.cat([ids[:length], ids[length : length + 1]])
        same = torch.allclose(alone(name, rest)[:-1], alone(name, ids[:length]), atol=1e-5)
        assert same == (tables.kind(length) == tables.kind(length + 1))
    assert not rotary.Tables.of(tiny.llama()).change and tables == rotary.Tables.of(model)


@pytest.mark.parametrize("name", KINDS)
def test_a_likelihood_is_that_of_the_request_alone(name):
    requests = [
        Likelihood("tiny ", "ab"),
        Likelihood("a shared context of some forty tokens, and more", " alpha" * 3),
        Likelihood("a shared context", " of a"),
        Likelihood("a shared context of some forty", " tok"),
        Likelihood("tiny ", "cd"),
    ]
    local = engine(name)
    found = local.loglikelihoods(requests)
    again = local.loglikelihoods(requests, wanted={0, 2})
    for index, request in enumerate(requests):
        context = list(request.context.rstrip().encode())
        whole = list((request.context + request.continuation).encode())
        expected = alone(name, whole[:-1]).log_softmax(-1)
        targets = torch.tensor(whole[len(context) :])
        expected = expected[len(context) - 1 :].gather(-1, targets[:, None]).sum()
        assert found[index].logprob == pytest.approx(expected.item(), abs=1e-4)
        if index in (0, 2):
            assert again[index].logprob == pytest.approx(expected.item(), abs=1e-4)
    assert again[1] is None


@pytest.mark.parametrize("name", [name for name in KINDS if "longrope" in name])
def test_a_text_is_that_of_the_prompt_alone(name):
    prompts = ["ab", "the middle one, twenty", "one that is much longer than all the tables of short texts"]
    requests = [Generation(prompt, (), 8) for prompt in prompts]
    found = engine(name).generate(requests)
    for prompt, text in zip(prompts, found):
        assert text == model_text(greedy(name, tuple(prompt.encode()), 8))


def model_text(ids):
    text = tiny.tokenizer().decode(ids[: ids.index(0)] if 0 in ids else ids, skip_special_tokens=True)
    return text


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("drafter", [None, "lookup", "model"])
def test_drafting_changes_nothing_across_the_length_at_which_tables_change(name, drafter):
    made = {
        None: lambda: None,
        "lookup": lambda: Lookup(draft_length=5),
        "model": lambda: Speculative(session(name), draft_length=3),
    }[drafter]()
    used = session(name)
    for prompt in (tiny.tokens(1, 6, vocab=4)[0].repeat(3)[:17], tiny.tokens(1, 30)[0], tiny.tokens(1, 23)[0]):
        answer = loop.generate(used, prompt, new_tokens=10, drafter=made)
        assert answer.token_ids == greedy(name, tuple(prompt.tolist()), 10)


@pytest.mark.parametrize("name", KINDS)
def test_a_session_gives_the_logits_of_the_whole_text_however_it_is_read(name):
    ids = tiny.tokens(1, 40)[0]
    expected = torch.stack([alone(name, ids[: end + 1])[-1] for end in range(40)])
    for steps in ([40], [1] * 40, [20, 10, 10], [24, 1, 15]):
        used, begin = session(name), 0
        for step in steps:
            found = used.extend(ids[begin : begin + step])
            assert torch.allclose(found, expected[begin : begin + step], atol=1e-4)
            begin += step
        for length in (33, 26, 20, 5):  # back over the change, and on
            used.rewind(length)
            assert torch.allclose(used.extend(ids[length:]), expected[length:], atol=1e-4)
            used.rewind(length)
            assert torch.allclose(used.extend(ids[length : length + 3], last=True), expected[length + 2], atol=1e-4)
            used.extend(ids[length + 3 :])


@pytest.mark.parametrize("name", ["llama dynamic", "phi dynamic"])
def test_what_a_longer_text_left_behind_does_not_reach_the_next_one(name):
    used, short, long = build(name), tiny.tokens(2, 30), tiny.tokens(2, 60)
    expected = perplexity.measure(build(name), short)
    with torch.no_grad():
        used(input_ids=long)
    assert perplexity.measure(used, short) == expected
    perplexity.measure(used, long)
    assert perplexity.measure(used, short) == expected
    with logits.evaluating(used):
        run = logits.forward(used)
        for ids in (long[0], short[0], tiny.tokens(1, 27)[0]):
            assert torch.allclose(run(ids[None])(slice(None)), alone(name, ids)[:-1], atol=1e-5)
    assert not any(module._forward_pre_hooks for module in used.modules())
