"""What tells models apart in the cache of answers: more than their weights."""

import copy

import pytest
import torch

from lib import checkpoints
from lib.evaluation import run
from lib.evaluation.local import Local
from lib.quantizers import absmax, int8
from lib.sources import models
from tests import questions, tiny


def quantized(**overrides):
    """A tiny Llama with 8-bit codes, one scale a row: what absmax and int8 share."""
    model = tiny.llama(**overrides)
    absmax.quantize_(model, bits=8, group_size=-1)
    return model


def integers(threshold):
    model = quantized()
    int8.integer_products_(model, threshold=threshold)
    return model


def ended(token):
    model = tiny.llama()
    model.generation_config.eos_token_id = token
    return model


def beginning():
    """A model whose tokenizer puts its first token before a text, with the same vocabulary."""
    from tokenizers.processors import TemplateProcessing

    model, first = tiny.llama(), tiny.tokenizer().bos_token
    core = model.tokenizer.backend_tokenizer
    core.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    return model


OTHERS = {
    "int8": (quantized, lambda: integers(6.0)),
    "threshold": (lambda: integers(6.0), lambda: integers(0.5)),
    "rope": (tiny.llama, lambda: tiny.llama(rope_parameters={"rope_type": "default", "rope_theta": 100.0})),
    "scaling": (
        tiny.llama,
        lambda: tiny.llama(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    ),
    "eps": (tiny.llama, lambda: tiny.llama(rms_norm_eps=0.3)),
    "first token": (tiny.llama, beginning),
}


@pytest.mark.parametrize("what", OTHERS)
def test_models_of_the_same_weights_that_answer_otherwise_are_asked_anew(what, tmp_path):
    task = questions.task(questions.likelihoods(3))
    one, other = (make() for make in OTHERS[what])
    assert checkpoints.fingerprint(one) == checkpoints.fingerprint(other)  # all that was looked at once
    first, second = (run.evaluate(model, task, cache=tmp_path) for model in (one, other))
    assert first.asked == second.asked == 3
    values = [[answer.logprob for row in each.rows for answer in row.answers] for each in (first, second)]
    assert values[0] != values[1]


def test_an_engine_knows_its_model_as_it_is_now(tmp_path):
    """One engine object whose model is quantized, and whose tokenizer changes, between two evaluations."""
    task, model = questions.task(questions.likelihoods(3)), tiny.llama()
    engine = Local(model)
    first = run.evaluate(engine, task, cache=tmp_path)
    absmax.quantize_(model, bits=3, group_size=16)
    second = run.evaluate(engine, task, cache=tmp_path)
    assert second.asked == 3 and [row.answers for row in second.rows] != [row.answers for row in first.rows]
    assert run.evaluate(Local(model), task, cache=tmp_path).asked == 0
    model.tokenizer.split_special_tokens = True
    assert run.evaluate(engine, task, cache=tmp_path).asked == 3


def test_another_end_token_is_asked_anew(tmp_path):
    task = questions.task(questions.generations(4, until=()))
    first = run.evaluate(tiny.llama(), task, cache=tmp_path)
    common = ord(first.rows[1].answers[0][0])  # a token is a byte
    second = run.evaluate(ended([0, common]), task, cache=tmp_path)
    assert second.asked == 4 and [row.answers for row in second.rows] != [row.answers for row in first.rows]
    assert Local(ended([common, 0])).identity == Local(ended([0, common])).identity  # a set, whatever its order


def test_paths_and_versions_tell_nothing_apart(tmp_path):
    model = tiny.llama()
    again, _ = models.load(str(tiny.save(tmp_path / "saved", model)))
    moved = copy.deepcopy(model)
    moved.config._name_or_path, moved.config.transformers_version = "/elsewhere", "1.0"
    assert Local(model).identity == Local(again.float()).identity == Local(moved).identity
    assert Local(model, dtype=torch.bfloat16).identity != Local(model).identity


def test_the_packed_engine_knows_how_its_tokenizer_begins():
    from lib import runtime
    from lib.evaluation.packed_engine import Packed

    plain, begun = (Packed(runtime.pack_(model)) for model in (tiny.llama(), beginning()))
    assert plain.identity != begun.identity
