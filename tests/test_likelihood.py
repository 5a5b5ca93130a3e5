"""Log-likelihoods against one request at a time, and against lm-evaluation-harness."""

import dataclasses

import pytest
import torch

from lib.evaluation import likelihood
from lib.evaluation.local import Local
from lib.quantizers import rtn
from lib.tasks.task import Likelihood
from tests import questions, tiny

ODD = [
    Likelihood("", "at the start"),
    Likelihood("spaces at the end  ", "moved"),
    Likelihood("same", " x"),
    Likelihood("same", " x"),
    Likelihood("same", " xy"),
    Likelihood("ünïcode ✓", " ✗é"),
]


def harness(model, some, **options):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    there = huggingface.HFLM(pretrained=model, tokenizer=model.tokenizer, batch_size=1, **options)
    given = [(each.context, each.continuation) for each in some]
    return there.loglikelihood([Instance("loglikelihood", {}, each, 0) for each in given], disable_tqdm=True)


@pytest.mark.parametrize("budget", [5, 64, 1000])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_equal_to_one_request_at_a_time(family, budget):
    model, some = getattr(tiny, family)(), questions.likelihoods()
    found = Local(model, budget=budget).loglikelihoods(some)
    for request, outcome in zip(some, found):
        value, is_greedy = questions.naive(model, request)
        assert outcome.logprob == pytest.approx(value, abs=1e-4)
        assert outcome.greedy == is_greedy
        assert outcome.tokens == len(request.continuation)


def test_equal_to_the_harness():
    model = tiny.llama()
    some = questions.likelihoods(9) + ODD
    for outcome, (value, is_greedy) in zip(Local(model, budget=48).loglikelihoods(some), harness(model, some)):
        assert outcome.logprob == pytest.approx(value, abs=1e-4)
        assert outcome.greedy == is_greedy


def test_greedy_continuations_are_recognized():
    model = tiny.llama()
    ids = model.tokenizer("a prompt", return_tensors="pt").input_ids
    for _ in range(4):
        following = model(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, following[None, None]], 1)
    encoded = [likelihood.Encoded(tuple(ids[0, :-1].tolist()), tuple(ids[0, -4:].tolist()), False)]
    wrong = dataclasses.replace(encoded[0], targets=(*encoded[0].targets[:-1], (encoded[0].targets[-1] + 1) % 256))
    seen = []
    found = likelihood.measure(model, [*encoded, wrong], {0, 1}, lambda *each: seen.append(each), 64)
    assert [outcome.greedy for outcome in found] == [True, False]
    assert sorted(seen, key=lambda each: each[0]) == list(enumerate(found))


def test_too_long_contexts_lose_their_left_end_as_in_the_harness():
    model = tiny.llama(max_position_embeddings=40)
    some = [Likelihood("x" * length + "abc", " answer") for length in (10, 31, 32, 70)]
    engine = Local(model)
    found = engine.loglikelihoods(some)
    assert engine.longest == 40
    assert engine.truncated == [2, 3]  # 41 tokens fit: the last one is not read
    for outcome, (value, _) in zip(found, harness(model, some)):
        assert outcome.logprob == pytest.approx(value, abs=1e-4)


def test_a_first_token_of_the_tokenizers_own_is_not_doubled():
    from tokenizers.processors import TemplateProcessing

    model = tiny.llama()
    tokenizer = model.tokenizer
    first = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.bos_token_id)]
    )
    some = [Likelihood("plain", " x"), Likelihood(f"{first}begun", " x"), Likelihood("", "x")]
    encoded = likelihood.encode(tokenizer, some, 100)
    assert [each.inputs.count(0) for each in encoded] == [1, 1, 1]
    # the harness looks for the first token as this tokenizer decodes it, which is not how it writes it
    same = [some[0], some[2]]
    for outcome, (value, _) in zip(Local(model).loglikelihoods(same), harness(model, same)):
        assert outcome.logprob == pytest.approx(value, abs=1e-4)
    assert likelihood.encode(tokenizer, some[:1], 100, bos=False)[0].inputs.count(0) == 0


def test_quantized_and_pruned_models_answer_too():
    from lib.pruners import depth

    for change in (lambda m: rtn.quantize_(m, bits=4, group_size=32), lambda m: depth.drop_blocks_(m, [1])):
        model, some = tiny.llama(), questions.likelihoods(4)
        change(model)
        for request, outcome in zip(some, Local(model, budget=30).loglikelihoods(some)):
            assert outcome.logprob == pytest.approx(questions.naive(model, request)[0], abs=1e-4)


def test_models_that_cannot_share_answer_one_by_one():
    model, some = tiny.llama(), questions.likelihoods(3)
    engine = Local(model)
    shared = engine.loglikelihoods(some)
    engine.__dict__["shares"] = False
    for one, other in zip(engine.loglikelihoods(some), shared):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert dataclasses.replace(one, logprob=0) == dataclasses.replace(other, logprob=0)


def test_what_is_wanted_does_not_change_the_bits():
    model, some = tiny.llama(), questions.likelihoods(9)
    engine = Local(model, budget=40)
    whole = engine.loglikelihoods(some)
    part = engine.loglikelihoods(some, wanted={3, 17, 30})
    assert [place for place, outcome in enumerate(part) if outcome] == [3, 17, 30]
    assert all(part[place] == whole[place] for place in (3, 17, 30))


def test_types():
    model, some = tiny.llama(), questions.likelihoods(3)
    before = {name: each.clone() for name, each in model.named_parameters()}
    exact, short = (Local(model, dtype=dtype) for dtype in (None, "bfloat16"))
    assert exact.model is model and short.shares
    assert exact.identity != short.identity
    for one, other in zip(exact.loglikelihoods(some), short.loglikelihoods(some)):
        assert one.logprob == pytest.approx(other.logprob, rel=0.05)
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())
    with pytest.raises(ValueError, match=r"dtype='int4'.*float32, bfloat16, float16"):
        Local(model, dtype="int4")


def test_the_mode_of_the_model_is_left_as_found():
    model = tiny.llama().train()
    Local(model).loglikelihoods(questions.likelihoods(1))
    assert model.training and model.model.layers[0].training


def test_refusals():
    model = tiny.llama(max_position_embeddings=16)
    with pytest.raises(ValueError, match=r"has 0 tokens; 1 to 16"):
        Local(model).loglikelihoods([Likelihood("context", "")])
    with pytest.raises(ValueError, match=r"has 20 tokens; 1 to 16"):
        Local(model).loglikelihoods([Likelihood("context", "x" * 20)])
    with pytest.raises(ValueError, match="without a tokenizer"):
        Local(torch.nn.Linear(2, 2))
    broken = tiny.llama()
    with torch.no_grad():
        broken.model.layers[2].mlp.down_proj.weight.fill_(float("nan"))
    engine = Local(broken)
    with pytest.raises(ValueError, match="not finite"):
        engine.loglikelihoods(questions.likelihoods(1))
