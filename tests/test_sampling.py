"""Processing of logits, by hand in float64, and refusals."""

import pytest
import torch

from lib.decoding.sampling import Sampling
from lib.decoding.stops import Stops, text_of
from tests import tiny


def test_probabilities_follow_their_definitions():
    logits = torch.tensor([3.0, 1.0, -2.0, 2.2, 0.5, 2.5])
    history = torch.tensor([0, 2, 0])
    scores = logits.double()
    scores[0], scores[2] = scores[0] / 1.5, scores[2] * 1.5
    scores = scores / 0.5
    scores[scores < scores.topk(4).values[-1]] = -torch.inf
    order = scores.argsort(descending=True)
    before = scores.softmax(-1)[order].cumsum(0) - scores.softmax(-1)[order]
    scores[order[before >= 0.7]] = -torch.inf  # a token stays when those before it add up to less than p
    sampling = Sampling(0.5, top_k=4, top_p=0.7, repetition_penalty=1.5)
    found = sampling.probabilities(logits, history)
    torch.testing.assert_close(found.double(), scores.softmax(-1), rtol=1e-5, atol=1e-7)
    assert (found > 0).sum() < 4
    assert Sampling(repetition_penalty=3.5).best(logits, history) == 5 and Sampling().best(logits, history) == 0


def test_the_same_seed_gives_the_same_choices_and_global_seeds_stay():
    p, state = torch.tensor([0.2, 0.3, 0.5]), torch.get_rng_state()
    one, other = Sampling(1.0, seed=5), Sampling(1.0, seed=5)
    assert [one.draw(p) for _ in range(20)] == [other.draw(p) for _ in range(20)]
    assert [one.accept(0.5) for _ in range(20)] == [other.accept(0.5) for _ in range(20)]
    assert one.accept(1.0) and not one.accept(0.0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -1.0}, "choose 0"),
        ({"temperature": float("nan")}, "choose 0"),
        ({"temperature": 1.0, "top_k": -1}, "top_k=-1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0"),
        ({"temperature": 1.0, "repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"top_k": 5}, "temperature=0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_stop_strings_end_in_the_last_token_and_are_cut_off():
    tokenizer = tiny.tokenizer()
    ids = torch.tensor(list("Häuser. Ende".encode()))
    stops = Stops(["äu", ". E"], tokenizer)
    places = [count for count in range(len(ids) + 1) if stops.reached(ids[:count])]
    assert places[0] == 4 and stops.cut(text_of(tokenizer, ids)) == "H"
    assert Stops([], None).cut("whole") == "whole" and not Stops("zz", tokenizer).reached(ids)
    with pytest.raises(ValueError, match="1 character or more"):
        Stops([""], tokenizer)
