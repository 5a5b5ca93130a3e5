"""Generations that are drawn: against a plain loop with the same generator, and in tasks that ask several times."""

import pytest
import torch

from lib import runtime
from lib.decoding import ends
from lib.decoding.sampling import Sampling
from lib.evaluation import generation_requests, run
from lib.evaluation.local import Local
from lib.evaluation.packed_engine import Packed
from lib.tasks.task import Generation
from tests import questions, tiny

HOW = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1}


def plainly(model, logits_of, request, seed):
    """One text, token by token: logits_of(ids) gives those behind all of them, [vocabulary]."""
    named = ends.of_task(ends.of_model(model), model.tokenizer)
    draws, watch = Sampling(**HOW, seed=seed), generation_requests.watch(model.tokenizer, request, named)
    ids = list(model.tokenizer(request.prompt).input_ids)
    while True:
        token = draws.draw(draws.probabilities(logits_of(ids), torch.tensor(ids)))
        ids.append(token)
        if watch.see(token):
            return watch.text()


def whole(model):
    """Logits behind all tokens by one pass without a cache."""

    @torch.no_grad()
    def of(ids):
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()

    return of


@pytest.mark.parametrize("rows", [1, 4])
def test_drawn_as_one_by_one(rows):
    model, some = tiny.llama(), questions.generations(6)
    found = Local(model, rows=rows, sampling=HOW, seed=5).generate(some)
    assert found == [plainly(model, whole(model), request, 5 + place) for place, request in enumerate(some)]
    assert found != Local(model).generate(some)


@pytest.mark.parametrize("rows", [1, 4])
def test_drawn_by_the_packed_engine(rows):
    model, some = runtime.pack_(tiny.llama(), embedding_bits=None), questions.generations(6)

    def of(ids):
        return runtime.Session(model).extend(ids, last=True)[0]

    found = Packed(model, rows=rows, sampling=HOW, seed=5).generate(some)
    assert found == [plainly(model, of, request, 5 + place) for place, request in enumerate(some)]


def test_one_prompt_asked_again_is_answered_otherwise():
    some = [Generation("again", (), 24)] * 6
    found = Local(tiny.llama(), sampling=HOW).generate(some)
    assert len(set(found)) == 6 and found == Local(tiny.llama(), sampling=HOW).generate(some)
    assert len(set(Local(tiny.llama()).generate(some))) == 1


def test_answers_are_kept_apart_by_how_they_were_chosen(tmp_path):
    model, task = tiny.llama(), questions.task(questions.generations(4))
    asked = [
        run.evaluate(engine, task, cache=tmp_path).asked
        for engine in (Local(model), Local(model, sampling=HOW), Local(model, sampling=HOW, seed=1), Local(model))
    ]
    assert asked == [4, 4, 4, 0]


def test_temperature_zero_is_greedy():
    model, some = tiny.llama(), questions.generations(4)
    assert Local(model, sampling={"temperature": 0.0}).generate(some) == Local(model).generate(some)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"temperature": 1.0, "top_k": -3}])
def test_wrong_settings_are_refused_before_anything_runs(wrong):
    with pytest.raises(ValueError, match=next(reversed(wrong))):
        Local(tiny.llama(), sampling=wrong)


def test_models_that_answer_one_by_one_draw_the_same():
    model, some = tiny.llama(), questions.generations(4)
    engine = Local(model, sampling=HOW, seed=5)
    engine.shares = False
    assert engine.generate(some) == [plainly(model, whole(model), each, 5 + place) for place, each in enumerate(some)]
