"""A server that serves the same model agrees with it; one that serves another does not."""

import pytest

from lib.evaluation import server_check
from lib.evaluation.endpoint import Endpoint
from lib.evaluation.local import Local
from tests import questions, tiny
from tests.test_endpoint import Served, server


@pytest.mark.parametrize("kind", ["likelihoods", "generations"])
def test_the_same_model_agrees_and_another_does_not(kind):
    task = questions.task(getattr(questions, kind)(6))
    with server(Served()) as (url, _):
        same = server_check.compare(Local(tiny.llama()), Endpoint(url, "tiny"), task)
        other = server_check.compare(Local(tiny.llama(seed=1)), Endpoint(url, "tiny"), task)
    assert same.samples == len(task.samples) and same.difference < 1e-3
    assert same.other_predictions == same.other_texts == 0
    assert other.difference > 0.01 or other.other_texts > 0
    assert str(same).endswith("0 predictions and 0 texts differ")
