"""Continuous batching against transformers' own greedy generation, one prompt at a time."""

import pytest

from lib.decoding.stops import Stops
from lib.evaluation import generation_requests, kv_batch, row_backend
from lib.evaluation.local import Local
from lib.tasks.task import Generation
from tests import questions, tiny


@pytest.mark.parametrize("most,budget", [(1, 16), (3, 64), (16, 256)])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_equal_to_transformers_one_by_one(family, most, budget):
    model = getattr(tiny, family)(**({"sliding_window": 24} if family != "llama" else {}))
    some = questions.generations(9)
    found = Local(model, rows=most, budget=budget).generate(some)
    assert found == [questions.greedy(model, request) for request in some]
    assert len(set(map(len, found))) > 3  # they ended at different steps


def test_buffers_grow_behind_short_and_long_rows(monkeypatch):
    monkeypatch.setattr(kv_batch, "SPARE", 3)
    model, some = tiny.llama(), questions.generations(12, until=(), most=30)
    assert Local(model, rows=4).generate(some) == [questions.greedy(model, request) for request in some]


def test_rows_are_bounded_by_memory(monkeypatch):
    model, some = tiny.llama(), questions.generations(6)
    monkeypatch.setattr(row_backend, "CACHE_BYTES", 1)
    assert Local(model, rows=4).generate(some) == [questions.greedy(model, request) for request in some]
    assert row_backend.bytes_per_token(model) == 2 * 4 * 2 * 16 * 4  # keys and values, blocks, heads, size, bytes


def test_equal_to_the_harness():
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    model, until = tiny.llama(), ("ab", "\n\n", "q")
    some = [Generation(each.prompt, until, 12) for each in questions.generations(8)]
    settings = {"until": list(until), "max_gen_toks": 12, "do_sample": False}
    there = huggingface.HFLM(pretrained=model, tokenizer=model.tokenizer, batch_size=1)
    given = [Instance("generate_until", {}, (each.prompt, dict(settings)), 0) for each in some]
    assert Local(model).generate(some) == there.generate_until(given, disable_tqdm=True)


def test_end_tokens_end_a_row():
    model, request = tiny.llama(), Generation("begin", (), 12)
    watched = []
    (free,) = Local(model).generate([request])
    for token in model.tokenizer(free).input_ids:
        model.generation_config.eos_token_id = [1, token]
        (found,) = Local(model).generate([request])
        assert found == questions.greedy(model, request)
        watched.append(len(found))
    assert min(watched) < len(free)


def test_identical_prompts_each_get_their_answer():
    some = [Generation("twice", (), most) for most in (3, 9, 9)]
    short, long, again = Local(tiny.llama()).generate(some)
    assert long == again and long.startswith(short)


def test_long_prompts_lose_their_left_end():
    model = tiny.llama(max_position_embeddings=32)
    engine = Local(model)
    found = engine.generate([Generation("x" * 40 + "end", (), 8), Generation("end", (), 8)])
    assert engine.truncated == [0]
    assert found[0] == questions.greedy(model, Generation("x" * 21 + "end", (), 8))


def test_models_that_cannot_share_generate_one_by_one():
    model, some = tiny.llama(), questions.generations(5)
    engine = Local(model)
    shared = engine.generate(some)
    engine.shares = False
    assert engine.generate(some) == shared


def test_some_only():
    model, some, seen = tiny.llama(), questions.generations(5), []
    found = Local(model).generate(some, wanted={1, 4}, finished=lambda *each: seen.append(each))
    assert [place for place, text in enumerate(found) if text is not None] == [1, 4]
    assert sorted(seen) == [(place, found[place]) for place in (1, 4)]


def test_a_watch_cuts_at_the_first_stop_string():
    tokenizer = tiny.tokenizer()
    watch = generation_requests.watch(tokenizer, Generation("", ("END", "é!", ""), 50), {7})
    ended = [watch.see(token) for token in tokenizer("some é text é!").input_ids]
    assert ended.index(True) == len(ended) - 1
    assert watch.text() == "some é text "
    assert Stops(["two", "END"], tokenizer).cut("one END two") == "one "
    short = generation_requests.watch(tokenizer, Generation("", (), 2), {7})
    assert [short.see(token) for token in (65, 66)] == [False, True]
    assert generation_requests.watch(tokenizer, Generation("", ("x",), 9), {7}).see(7)


def test_refusals():
    model = tiny.llama(max_position_embeddings=16)
    for most in (0, 16):
        with pytest.raises(ValueError, match=rf"max_new_tokens={most} .* 1 to 15"):
            Local(model).generate([Generation("prompt", (), most)])
    with pytest.raises(ValueError, match="without tokens"):
        Local(model).generate([Generation("", (), 4)])
