"""A model whose tokenizer has no BOS, no EOS and nothing to pad with, from loading to the packed engine."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from lib import runtime, tokenization
from lib.decoding import ends
from lib.evaluation.local import Local
from lib.evaluation.packed_engine import Packed
from lib.export import compressed_tensors
from lib.metrics import bits_per_byte, perplexity
from lib.pruners import depth, heal
from lib.quantizers import gptq
from lib.sources import models, texts
from lib.tasks.task import Generation, Likelihood
from tests import questions, tiny

TEXT = texts.Text("told", "train", ["Once there was a model without a beginning, and without an end. " * 20])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint and its tokenizer, without any special token."""
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    made = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    made.chat_template = tiny.tokenizer().chat_template
    model = tiny.llama(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model.save_pretrained(tmp_path / "m")
    made.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def model(folder):
    found, tokenizer = models.load(str(folder))
    assert tokenizer.bos_token_id is tokenizer.eos_token_id is tokenizer.pad_token_id is None
    assert ends.of_model(found) == () and not ends.of_task((), tokenizer)
    return found


@torch.no_grad()
def greedy(model, text, count):
    """The text of `count` likeliest tokens, by whole passes."""
    ids = model.tokenizer(text).input_ids
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return model.tokenizer.decode(ids[-count:])


def test_quantized_saved_and_measured(model, folder):
    gptq.quantize_(model, TEXT.windows(4, 32), bits=4, group_size=32)
    compressed_tensors.save(model, model.tokenizer, folder.parent / "q")
    again, _ = models.load(str(folder.parent / "q"))
    plain = AutoModelForCausalLM.from_pretrained(folder.parent / "q", dtype="auto")
    ids = texts.tokens(TEXT, model, count=4, length=32)
    with torch.no_grad():
        scores = plain(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
    assert perplexity.measure(again, ids).value == pytest.approx(math.exp(-scores.mean()), rel=1e-5)


def test_likelihoods_and_generations(model):
    likely = questions.likelihoods(3)
    for request, outcome in zip(likely, Local(model).loglikelihoods(likely)):
        assert outcome.logprob == pytest.approx(questions.naive(model, request)[0], abs=1e-4)
    asked = [Generation(prompt, (), 12) for prompt in ("one", "quite another, longer prompt")]
    expected = [greedy(model, request.prompt, 12) for request in asked]
    assert Local(model).generate(asked) == expected


def test_the_packed_engine(model, folder):
    weights = runtime.load(folder, embedding_bits=None)
    assert weights.stops == ()
    made = runtime.generate(weights, ["one", "two and three"], new_tokens=8)
    assert [len(each.token_ids) for each in made] == [8, 8]
    asked = [Generation("one", (), 8)]
    assert len(Packed(weights, model.tokenizer).generate(asked)) == 1
    likely = questions.likelihoods(1)
    for found, known in zip(
        Packed(weights, model.tokenizer).loglikelihoods(likely), Local(model).loglikelihoods(likely)
    ):
        assert found.logprob == pytest.approx(known.logprob, rel=0.05)


def test_pruned_and_healed(model, folder):
    teacher, _ = models.load(str(folder))
    depth.drop_blocks_(model, [2])
    history = heal.heal_(model, TEXT.windows(8, 16), teacher=teacher, first=2, steps=2)
    assert all(math.isfinite(loss) for loss in history.losses)


def test_drafting(model, folder):
    from lib.decoding import generate, lookup, sessions

    prompt = torch.tensor(model.tokenizer("abc abc abc").input_ids)
    for eos in (None, ends.of_model(model)):
        run = {"new_tokens": 12, "eos": eos}
        plain = generate.generate(sessions.ModelSession(model), prompt, **run)
        drafted = generate.generate(sessions.ModelSession(model), prompt, drafter=lookup.Lookup(), **run)
        assert plain.token_ids == drafted.token_ids and plain.reason == "length"


def test_a_text_that_needs_a_token_before_it_is_refused_by_name(model):
    needs = "neither BOS nor EOS; one is needed where nothing stands before a text"
    with pytest.raises(ValueError, match=needs):
        Local(model).loglikelihoods([Likelihood("", "at the start")])
    with pytest.raises(ValueError, match=needs):
        bits_per_byte.measure(model, "a text")
    assert bits_per_byte.measure(tiny.llama(), "a text").value > 0
    model.tokenizer.eos_token = "!"
    assert tokenization.beginning(model.tokenizer) == [ord("!")]
    assert bits_per_byte.measure(model, "a text").value > 0
