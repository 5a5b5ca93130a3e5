"""The one loop: requests that come and go, each with its own ways, against each of them alone."""

from collections import deque

import numpy as np
import pytest
import torch

from lib import runtime
from lib.decoding import settings
from lib.decoding.draft_controller import DraftController
from lib.decoding.generate import generate
from lib.decoding.generation_loop import Loop, likeliest
from lib.decoding.lookup import Lookup
from lib.decoding.requests import Request
from lib.decoding.sampling import Sampling
from lib.decoding.session_backend import Sessions
from lib.decoding.sessions import ModelSession
from lib.decoding.speculative import Speculative
from lib.decoding.stops import Stops
from lib.evaluation.row_backend import RowBackend
from lib.runtime.slots import Slots
from tests import packed, tabular, tiny

END = 129
OPT = dict(ffn_dim=96, word_embed_proj_dim=64, tie_word_embeddings=True, hidden_size=64, max_position_embeddings=64)
FAMILIES = {
    "llama": tiny.llama,
    "mistral": lambda: tiny.mistral(sliding_window=12),
    "gemma2": lambda: tiny.gemma2(sliding_window=12),
    "qwen3": tiny.qwen3,
    "opt": lambda: tiny._build("OPT", 0, OPT),
}


def prompts(count=8, seed=0):
    """Prompts of unequal lengths; half of them begin with the same twenty tokens."""
    generator, begin = torch.Generator().manual_seed(seed), tiny.tokens(1, 20, seed=9)[0].tolist()
    for place in range(count):
        length = int(torch.randint(1, 12, (), generator=generator))
        own = torch.randint(256, (length,), generator=generator).tolist()
        yield begin * (place % 2) + own


def ways(place, tokenizer):
    """What differs between requests: drafter, controller, sampler, stop strings, number of tokens."""
    drafters = [None, Lookup(), tabular.Fixed([], length=3, wrong=1.0), Lookup(draft_length=4, adaptive=False)]
    drafters.append(Speculative(ModelSession(tiny.llama(seed=1, num_hidden_layers=1)), draft_length=3))
    return {
        "drafter": drafters[place % 5],
        "controller": DraftController({0: 1.0, 1: 1.1, 4: 1.4}) if place % 5 == 1 and place > 5 else None,
        "sampling": Sampling(0.8, top_k=50, seed=place) if place % 3 == 2 and place % 5 == 0 else None,
        "stops": Stops(["a", "e", "1"] if place % 4 == 3 else [], tokenizer),
        "ends": {END, place},
    }


def alone(session, prompt, new_tokens, place, tokenizer, **more):
    """The answer of a session of its own, by the thin caller."""
    how = ways(place, tokenizer)
    return generate(
        session, torch.tensor(prompt), new_tokens=new_tokens, eos=how["ends"], stop=how["stops"].strings,
        tokenizer=tokenizer, **{name: how[name] for name in ("drafter", "controller", "sampling")}, **more,
    )  # fmt: skip


def same(request, wanted, heard):
    assert request.answer.token_ids == wanted.token_ids
    assert (request.answer.reason, request.answer.text) == (wanted.reason, wanted.text)
    assert [token for tokens in heard for token in tokens] == wanted.token_ids
    assert sum(step.produced for step in request.answer.steps) == len(wanted.token_ids)


def compared(backend, session, tokenizer, own=settings.PLAIN):
    """Answers of many requests together, each equal to the same request alone; the requests."""
    heard, ended, asked = {}, [], []
    for place, prompt in enumerate(prompts()):
        heard[place] = []
        asked.append(
            Request(
                prompt,
                6 + 2 * place,
                own=own,
                stream=heard[place].append,
                finished=lambda answer, place=place: ended.append(place),
                **ways(place, tokenizer),
            )
        )
    Loop(backend, asked).run()
    assert sorted(ended) == list(range(len(asked)))
    for place, (request, prompt) in enumerate(zip(asked, prompts())):
        same(request, alone(session, prompt, 6 + 2 * place, place, tokenizer), heard[place])
    return asked


@pytest.mark.parametrize("most", [1, 3, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_with_drafts_of_their_own_give_what_each_gives_alone(family, most):
    model = FAMILIES[family]()
    asked = compared(RowBackend(model, budget=64, most=most), ModelSession(model), model.tokenizer)
    assert any(step.accepted for request in asked for step in request.answer.steps)
    assert {request.answer.reason for request in asked} >= {"length"}


@pytest.mark.parametrize("most", [1, 3])
def test_sessions_take_turns(most):
    model = tiny.llama()
    compared(Sessions([ModelSession(model) for _ in range(most)]), ModelSession(model), model.tokenizer)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_the_packed_engine_with_drafts_of_its_own(most):
    model = runtime.pack_(packed.quantize_(tiny.llama(), dtype=torch.float32))
    weights = runtime.engine.weights_of(model)
    asked = compared(Slots(weights, most), runtime.Session(weights), model.tokenizer)
    assert any(step.accepted for request in asked for step in request.answer.steps)


def test_settings_of_a_checkpoint_hold_for_each_request():
    model = tiny.llama()
    model.generation_config.update(no_repeat_ngram_size=2, min_new_tokens=4)
    own = settings.of(model)
    compared(RowBackend(model, budget=64, most=4), ModelSession(model), model.tokenizer, own)


def test_requests_come_while_others_are_under_way_and_may_be_cancelled():
    model = tiny.llama()
    first, second, third, fourth = (Request(prompt, 10, stops=Stops([], model.tokenizer)) for prompt in prompts(4))
    loop = Loop(RowBackend(model, budget=64, most=2), [first, second, fourth])
    for _ in range(3):
        assert loop.step()
    loop.add(third)
    loop.cancel(fourth)  # it is planned, and has no row yet
    loop.cancel(second)
    loop.cancel(second)
    loop.run()
    assert not loop.step() and not loop.active
    assert (first.answer.reason, third.answer.reason) == ("length", "length")
    assert second.answer.reason == fourth.answer.reason == "cancelled" and fourth.answer.token_ids == []
    for request in (first, second, third):
        whole = generate(ModelSession(model), torch.tensor(request.prompt), new_tokens=10)
        assert request.answer.token_ids == whole.token_ids[: len(request.answer.token_ids)]
    assert len(second.answer.token_ids) == 4


def test_a_request_that_is_cancelled_by_its_own_stream_stops_there():
    model = tiny.llama()
    loop = Loop(Sessions([ModelSession(model)]))
    request = Request([1, 2, 3], 10, stream=lambda tokens: loop.cancel(request) if request.known == 6 else None)
    loop.add(request)
    loop.run()
    assert request.answer.reason == "cancelled" and len(request.answer.token_ids) == 3


def test_slots_read_what_is_shared_once(monkeypatch):
    weights = runtime.engine.weights_of(runtime.pack_(packed.quantize_(tiny.llama(), dtype=torch.float32)))
    backend, read = Slots(weights, 2), []
    extend = backend.batch.extend

    def counted(sequences, **options):
        read.append({slot: len(tokens) for slot, tokens in sequences.items()})
        return extend(sequences, **options)

    monkeypatch.setattr(backend.batch, "extend", counted)
    begin = list(range(40, 90))
    given = [[1, 2, 3], [*begin, 5], [*begin, 6, 7], [*begin[:20], 8], [*begin, 5]]
    asked = [Request(prompt, 1) for prompt in given]
    Loop(backend, asked).run()
    # two at once: whole prompts, then what follows 50 and 20 tokens that lie in a slot, then what follows 50
    assert [sum(each.values()) for each in read] == [54, 3, 1]
    for request in asked:
        logits = runtime.Session(weights).extend(request.prompt, last=True)
        assert request.answer.token_ids == [int(logits.argmax())]


def test_a_token_that_is_none_stops_the_loop():
    rows = np.zeros((2, 5), np.float32)
    rows[0, 3] = 1
    assert likeliest(rows) == [3, 0] and likeliest(torch.tensor(rows)) == [3, 0]
    rows[1, 2] = np.nan
    for some in (rows, torch.tensor(rows)):
        with pytest.raises(ValueError, match="not finite"):
            likeliest(some)


def test_admission_waits_for_room():
    session = tabular.TabularSession(vocabulary=20)
    backend, waiting = Sessions([session]), deque([Request([1, 2], 3), Request([3], 3)])
    (first,) = [request for request, _ in backend.admit(waiting)]
    assert len(waiting) == 1 and session.tokens == [1]
    backend.leave(first)
    assert len(list(backend.admit(waiting))) == 1 and session.tokens == []
