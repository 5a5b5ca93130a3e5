"""An answer has the same bits alone and under load: tokens, log-probabilities and samples."""

import concurrent.futures
import dataclasses
import random

import pytest

from tests import served, tiny

WORDS = [a + b for a in "thwsn" for b in ("a", "e", "ing", "o")]


def asked(place):
    """Requests of mixed settings; half of them share the beginning of their prompts."""
    choice = random.Random(place)
    begin = " ".join(WORDS[:8]) if place % 2 else ""
    inputs = (begin + " " + " ".join(choice.choices(WORDS, k=choice.randint(1, 20)))).strip()
    given = {"max_new_tokens": choice.randint(1, 24), "details": True, "top_n_tokens": place % 3}
    given |= [
        {},
        {"do_sample": True, "seed": place},
        {"temperature": 0.7, "top_k": 20, "seed": place},
        {"top_p": 0.8, "typical_p": 0.9, "seed": place, "repetition_penalty": 1.2},
        {"frequency_penalty": 0.7},
        {"stop": ["a", "e"], "decoder_input_details": True},
    ][place % 6]
    return inputs, given


def same_under_load(server, count, clients):
    wanted = [server.generate(inputs, **given).json() for inputs, given in map(asked, range(count))]
    order = list(range(count)) * 2
    random.Random(count).shuffle(order)
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda place: server.generate(asked(place)[0], **asked(place)[1]).json(), order))
    assert found == [wanted[place] for place in order]
    assert len({each["generated_text"] for each in wanted}) > count // 2


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_packed_answers_do_not_depend_on_load(bits):
    with served.running(dataclasses.replace(served.artifact(), cache_bits=bits)) as server:
        same_under_load(server, 12, 12)


def test_drafts_change_neither_tokens_nor_log_probabilities():
    plain, drafting = served.artifact(), served.artifact("drafting")
    drafting.costs = {0: 1.0, 1: 1e-9, 8: 1e-9}  # drafting always pays
    with served.running(plain, drafting) as server:
        for inputs, given in ((f"abcabcabc {place}", {"max_new_tokens": 40, "details": True}) for place in range(4)):
            first, second = (
                server.generate(inputs, f"/generate?model={name}", **given) for name in ("tiny", "drafting")
            )
            assert first.json() == second.json()
        steps = server.hall.engine.steps
        server.generate("abab" * 8, "/generate?model=drafting", max_new_tokens=60)
        assert server.hall.engine.steps - steps < 60


def test_answers_of_transformers_do_not_depend_on_load():
    model = tiny.gemma2(sliding_window=12)
    with served.running(served.artifact(model=model)) as server:
        same_under_load(server, 6, 6)


@pytest.mark.long
def test_64_clients_of_mixed_settings():
    limits = dataclasses.replace(served.LIMITS, queue=128)
    with served.running(served.artifact(limits=limits), limits=limits) as server:
        same_under_load(server, 96, 64)
