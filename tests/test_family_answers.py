"""Every family answers alike: drafted or not, alone or beside other requests, in tasks, and as plain transformers."""

import pytest
import torch

from lib import tasks
from lib.decoding.generate import generate
from lib.decoding.lookup import Lookup
from lib.decoding.sessions import ModelSession
from lib.decoding.speculative import Speculative
from lib.evaluation import run
from lib.evaluation.local import Local
from lib.quantizers import rtn
from lib.tasks.task import Generation, Likelihood
from tests import families
from tests.supported import attempt

NEW = 24
PROMPT = families.TEXT[0, :52]  # 24 more pass the lengths at which windows and scaled rotations begin
SHORT = Likelihood("tiny", " ab")
LONG = Likelihood("a shared context of about fifty tokens, a bit more", " alpha" * 6)


@pytest.fixture(scope="module", params=families.FAMILIES)
def model(request):
    """A model; `model.family` is its name here."""
    found = families.build_short(request.param)
    found.family = request.param
    return found


def continued(model, prompt: torch.Tensor, new_tokens: int) -> list[int]:
    """Greedy decoding by plain transformers."""
    found = model.generate(prompt[None], max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    return found[0, len(prompt) :].tolist()


def logprob(model, context: str, continuation: str) -> float:
    """Σ ln q of the continuation's tokens, by plain transformers in one pass."""
    known, new = (list(text.encode()) for text in (context, continuation))
    scores = families.logits(model, torch.tensor([known + new]))[0].log_softmax(-1)
    return float(scores[len(known) - 1 : -1].gather(-1, torch.tensor(new)[:, None]).sum())


def test_drafts_do_not_change_the_text(model):
    small = families.build_short(model.family)
    with attempt(model.family, "draft"):
        rtn.quantize_(small, bits=4, group_size=families.group_size(model.family))
        wanted, drafters = continued(model, PROMPT, NEW), (None, Lookup(), Speculative(ModelSession(small)))
        ends = model.generation_config.eos_token_id
        for drafter in drafters:
            answer = generate(ModelSession(model), PROMPT, new_tokens=NEW, drafter=drafter, eos=ends)
            assert answer.token_ids == wanted, drafter
        assert len(answer.steps) < NEW or answer.reason == "eos"  # a 4-bit model does guess something


def test_likelihoods_do_not_depend_on_other_requests(model):
    wanted = [logprob(model, each.context, each.continuation) for each in (SHORT, LONG)]
    with attempt(model.family, "tasks"):
        alone = [Local(model).loglikelihoods([each])[0].logprob for each in (SHORT, LONG)]
        together = [each.logprob for each in Local(model).loglikelihoods([SHORT, LONG])]
        assert alone == pytest.approx(wanted, abs=1e-3) and together == pytest.approx(wanted, abs=1e-3)


def test_generations_do_not_depend_on_other_requests(model):
    prompts = "say a", "say a rather longer thing, please, and then another of the kind"
    ids = [torch.tensor(list(prompt.encode())) for prompt in prompts]
    wanted = [model.tokenizer.decode(continued(model, each, 12), skip_special_tokens=True) for each in ids]
    asked = [Generation(prompt, (), 12) for prompt in prompts]
    with attempt(model.family, "tasks"):
        assert [Local(model).generate([each])[0] for each in asked] == wanted
        assert Local(model).generate(asked) == wanted


def test_tasks_are_answered_as_by_plain_transformers(model):
    with attempt(model.family, "tasks"):
        task = tasks.load("packaged_facts", count=4)
        found = run.evaluate(model, task, cache=False)
        best = []
        for sample in task.samples:
            scores = [logprob(model, each.context, each.continuation) for each in sample.requests]
            best.append(max(range(4), key=scores.__getitem__) == sample.target["answer"])
        assert found["acc"].value == pytest.approx(sum(best) / len(best))
