"""Evaluation against the server has the scores that the engine has in process, to the digit."""

import os
from pathlib import Path

import httpx
import pytest

from lib import tasks
from lib.evaluation import run
from lib.evaluation.endpoint import Endpoint
from lib.evaluation.packed_engine import Packed
from tests import lm_eval_local, questions, served


@pytest.fixture(scope="module")
def server():
    with served.running(served.artifact()) as client:
        yield client


def test_our_own_evaluation_of_a_server(server, monkeypatch):
    real, made = httpx.Client, []
    monkeypatch.setattr(httpx, "Client", lambda **how: made.append(how) or real(**how))
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
    assert len(made) == 1  # each takes longer to make than a short answer


@pytest.fixture
def harness(server, tmp_path):
    """lm-evaluation-harness's `local-completions`, which asks the server."""
    pytest.importorskip("lm_eval")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    served.weights().tokenizer.save_pretrained(tmp_path)
    return LocalCompletionsAPI(
        base_url=f"{server.base_url}/v1/completions", model="tiny", tokenizer=str(tmp_path),
        tokenizer_backend="huggingface", num_concurrent=1, max_length=512, batch_size=4,
    )  # fmt: skip


def test_the_harness_s_local_completions(harness):
    from lm_eval.api.instance import Instance

    asked = questions.likelihoods(3)
    given = [Instance("loglikelihood", {}, (each.context, each.continuation), 0) for each in asked]
    found = harness.loglikelihood(given, disable_tqdm=True)
    wanted = Packed(served.weights(), served.weights().tokenizer).loglikelihoods(asked)
    for (value, greedy), own in zip(found, wanted):
        assert value == pytest.approx(own.logprob, abs=1e-4) and greedy == own.greedy


@pytest.mark.skipif(
    not os.environ.get("THIMBLE_DATA") or not (Path(os.environ["THIMBLE_DATA"]) / "arc").is_dir(),
    reason="set THIMBLE_DATA to a folder with evaluation data",
)
def test_the_harness_s_arc_has_the_scores_of_our_own_in_process(harness):
    """Its task, its client and its scores over HTTP; our task and our engine in this process: equal to the digit."""
    task = tasks.load("arc_challenge", count=8, seed=3)
    theirs = lm_eval_local.like("arc_challenge", shots=task.data["shots"] or None)
    own = run.evaluate(Packed(served.weights(), served.weights().tokenizer), task, cache=False)
    found = []
    for place in lm_eval_local.positions("arc_challenge", task.samples):
        lm_eval_local.requests(theirs, [place])
        answers = harness.loglikelihood(theirs.instances, disable_tqdm=True)
        found.append(lm_eval_local.scores(theirs, place, answers)["none"])
    assert len(own.rows) == 8 and {"acc", "acc_norm"} <= set(task.metrics)
    assert [{name: row.scores[name] for name in each} for row, each in zip(own.rows, found)] == found
    for name in ("acc", "acc_norm"):
        assert own[name].value == sum(each[name] for each in found) / 8
