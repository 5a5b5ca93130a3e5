"""Evaluation against the server has the scores that the engine has in process, to the digit."""

import pytest

from lib.evaluation.endpoint import Endpoint
from lib.evaluation.packed_engine import Packed
from tests import questions, served


@pytest.fixture(scope="module")
def server():
    with served.running(served.artifact()) as client:
        yield client


def test_our_own_evaluation_of_a_server(server):
    engine = Packed(served.weights(), served.weights().tokenizer)
    endpoint = Endpoint(f"{server.base_url}/v1", "tiny")
    asked = questions.likelihoods(4)
    ours, theirs = engine.loglikelihoods(asked), endpoint.loglikelihoods(asked)
    for here, there in zip(ours, theirs):
        assert there.logprob == pytest.approx(here.logprob, abs=1e-4) and (there.greedy, there.tokens) == (
            here.greedy,
            here.tokens,
        )
    some = questions.generations(4)
    assert endpoint.generate(some) == engine.generate(some)


def test_the_harness_s_local_completions(server, tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    served.weights().tokenizer.save_pretrained(tmp_path)
    harness = LocalCompletionsAPI(
        base_url=f"{server.base_url}/v1/completions", model="tiny", tokenizer=str(tmp_path),
        tokenizer_backend="huggingface", num_concurrent=1, max_length=512, batch_size=4,
    )  # fmt: skip
    asked = questions.likelihoods(3)
    given = [Instance("loglikelihood", {}, (each.context, each.continuation), 0) for each in asked]
    found = harness.loglikelihood(given, disable_tqdm=True)
    wanted = Packed(served.weights(), served.weights().tokenizer).loglikelihoods(asked)
    for (value, greedy), own in zip(found, wanted):
        assert value == pytest.approx(own.logprob, abs=1e-4) and greedy == own.greedy
