"""Prompts in pieces: answers run on meanwhile, every prompt gets its share, memory is bounded, cancelled ones leave."""

import itertools

import pytest

from lib.decoding.generation_loop import Loop
from lib.decoding.requests import Request
from lib.decoding.session_backend import Sessions
from lib.runtime.slots import Slots
from tests import served, tabular, tiny


def prompt(length, seed=0):
    return tiny.tokens(1, length, seed=seed)[0].tolist()


@pytest.fixture
def weights():
    return served.runtime.engine.weights_of(served.weights())


def rows(backend):
    """Tokens of each pass that the backend makes from now on."""
    found, extend = [], backend.batch.extend

    def counted(sequences, **how):
        found.append({slot: len(tokens) for slot, tokens in sequences.items()})
        return extend(sequences, **how)

    backend.batch.extend = counted
    return found


def test_a_running_answer_waits_for_one_piece_at_most(weights):
    backend = Slots(weights, 3, piece=16, positions=1000)
    loop = Loop(backend, [Request(prompt(4), 40)])
    loop.step()
    passes = rows(backend)
    loop.add(Request(prompt(200, 1), 5))
    loop.add(Request(prompt(9, 2), 5))
    loop.run()
    assert max(sum(each.values()) for each in passes) <= 16
    decoding = [place for place, each in enumerate(passes) if each.get(0) == 1]
    assert all(b - a <= 2 for a, b in itertools.pairwise(decoding))  # one piece between two steps
    short, long = ([place for place, each in enumerate(passes) if each.get(slot, 0) > 1] for slot in (2, 1))
    assert len(short) <= 2 and len(long) >= 12  # a short prompt does not wait for a long one


def test_a_long_prompt_is_read_while_short_ones_keep_coming(weights):
    """More prompts than tokens to read between two steps: the long one still gets its share of them."""
    loop, long = Loop(Slots(weights, 6, piece=2, positions=2000)), Request(prompt(30), 2)
    loop.add(long)
    for seed in range(40):
        for more in range(3):
            loop.add(Request(prompt(4, 3 * seed + more), 1))
        loop.step()
    assert loop.waiting and long not in loop.backend.reading and len(long.answer.token_ids) == 2


def test_short_requests_do_not_overtake_one_that_waits_for_memory(weights):
    loop = Loop(Slots(weights, 4, piece=64, positions=128))
    first, large, *small = (Request(prompt(*given), 6) for given in ((60, 1), (110, 2), (5, 3), (7, 4)))
    for each in (first, large, *small):
        loop.add(each)
    while loop.step():
        assert large.answer.entered is not None or not any(each.answer.entered for each in small)
    assert [len(each.answer.token_ids) for each in (first, large, *small)] == [6] * 4


def test_the_pieces_change_no_answer(weights):
    given = [prompt(length, length) for length in (3, 60, 17, 130, 40)]
    wanted = [Request(each, 6) for each in given]
    Loop(Slots(weights, 1), wanted).run()
    for piece in (1, 5, 24):
        found = [Request(each, 6) for each in given]
        Loop(Slots(weights, 3, piece=piece, positions=600), found).run()
        assert [each.answer.token_ids for each in found] == [each.answer.token_ids for each in wanted]


def test_memory_is_bounded_and_kept_prefixes_go_first(weights):
    backend = Slots(weights, 4, piece=64, positions=128)
    loop = Loop(backend)
    for seed in range(6):
        loop.add(Request(prompt(50, seed), 10))
    while loop.step():
        used = sum(max(len(each.prompt) + each.new_tokens, backend.filled[slot]) for each, slot in backend.of.items())
        assert used + backend.kept <= 128 and len(backend.of) <= 2
    assert 0 < backend.kept <= 128
    kept = next(slot for slot in backend.free if backend.filled[slot])
    assert backend.batch.cache.keys[:, kept].any()
    backend._forget(kept)
    assert len(backend.read[kept]) == 0


def test_the_next_turn_of_a_chat_reads_only_what_is_new(weights):
    backend = Slots(weights, 2, piece=200, positions=500)
    first = Request(prompt(40), 20)
    Loop(backend, [first]).run()
    passes = rows(backend)
    following = Request([*first.prompt, *first.answer.token_ids, *prompt(6, 3)], 4)
    Loop(backend, [following]).run()
    assert sum(passes[0].values()) == 6 + 1  # the answer's last token was never read
    alone = Request(following.prompt, 4)
    Loop(Slots(weights, 1), [alone]).run()
    assert following.answer.token_ids == alone.answer.token_ids


@pytest.mark.parametrize("kind", ["slots", "sessions"])
def test_cancelled_while_its_prompt_is_read(weights, kind):
    sessions = [tabular.TabularSession(vocabulary=256) for _ in range(2)]
    backend = Slots(weights, 2, piece=4, positions=500) if kind == "slots" else Sessions(sessions, piece=4)
    loop, gone, other = Loop(backend), Request(prompt(100), 5), Request(prompt(30, 1), 5)
    loop.add(gone)
    loop.add(other)
    for _ in range(3):
        loop.step()
    assert gone in backend.reading
    loop.cancel(gone)
    loop.step()
    assert gone not in backend.of and len(backend.free) == 1
    loop.run()
    assert gone.answer.reason == "cancelled" and other.answer.reason == "length" and len(backend.free) == 2
