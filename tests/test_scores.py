"""Log-probabilities of tokens: against torch, whatever else is in the batch, and of prompts read in pieces."""

import numpy as np
import pytest
import torch

from lib.decoding.generation_loop import Loop
from lib.decoding.requests import Request
from lib.decoding.scores import Scores, place
from lib.decoding.session_backend import Sessions
from lib.decoding.sessions import ModelSession
from lib.runtime.slots import Slots
from tests import served, tiny


def test_a_place_is_torch_s_log_softmax():
    rows = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)) * 20
    rows[2, 7:10] = rows[2].max() + 1  # equals come by their ids
    for row in rows:
        wanted = row.double().log_softmax(-1)
        for given in (row, row.numpy()):
            found = place(given, 5, 4)
            assert found.logprob == pytest.approx(float(wanted[5]), abs=1e-5)
            assert [value for _, value in found.top] == pytest.approx(wanted.topk(4).values.tolist(), abs=1e-5)
    assert [token for token, _ in place(rows[2], 0, 2).top] == [7, 8]
    assert len(place(np.zeros(3, np.float32), 0, 9).top) == 3


def backends(count, piece):
    weights = served.runtime.engine.weights_of(served.weights())
    model = tiny.llama()
    yield lambda: Slots(weights, count, piece=piece, positions=count * 200), served.runtime.Session(weights)
    yield lambda: Sessions([ModelSession(model) for _ in range(count)], piece=piece), ModelSession(model)


@pytest.mark.parametrize("piece", [None, 7])
def test_prompts_and_answers_have_the_scores_of_one_pass(piece):
    prompts = [tiny.tokens(1, length, seed=length)[0].tolist() for length in (1, 5, 23, 40)]
    for make, session in backends(3, piece):
        asked = [Request(prompt, 4, scores=Scores(top=2, prompt=True)) for prompt in prompts]
        Loop(make(), asked).run()
        for prompt, request in zip(prompts, asked):
            whole = [*prompt, *request.answer.token_ids]
            session.rewind(0)
            rows = session.extend(torch.tensor(whole)).log_softmax(-1)
            own = rows[range(len(whole) - 1), whole[1:]].tolist()
            found = [each.logprob for each in (*request.scores.prompt, *request.scores.answer)]
            assert found == pytest.approx(own, abs=2e-4)
            assert len(request.scores.prompt) == len(prompt) - 1
