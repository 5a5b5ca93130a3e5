"""Answers the same requests here and with lm-evaluation-harness, and compares numbers and speed.

    print(lm_eval_check.compare(model, tasks.load("mmlu", each=20)))

The harness (`pip install lm-eval`) runs in this process, with its own tokenization, batching and scoring of tokens,
on the same model. Both start from the prompts as text, and both times run from there to the last answer.
"""

from dataclasses import dataclass

from lib import timing
from lib.evaluation.local import Local
from lib.tasks.task import Likelihood, Outcome, Sample, Task


@dataclass(frozen=True)
class Comparison:
    """Both engines on one task. `difference`: the largest between two log-likelihoods; the counts are of samples."""

    task: str
    samples: int
    seconds: float
    harness_seconds: float
    difference: float
    other_predictions: int
    other_texts: int

    @property
    def ratio(self) -> float:
        """How many times the harness's samples per second."""
        return self.harness_seconds / self.seconds

    def __str__(self):
        return (
            f"{self.task}: {self.samples} samples, {self.samples / self.seconds:.2f} a second here, "
            f"{self.samples / self.harness_seconds:.2f} there ({self.ratio:.1f} times); log-likelihoods differ by "
            f"{self.difference:.1e} at most, {self.other_predictions} predictions and {self.other_texts} texts differ"
        )


def compare(model, task: Task, *, limit: int | None = None, batch: int = 1) -> Comparison:
    """Answer a task's requests by `local.Local` and by the harness's `HFLM` with `batch` rows; float32 is compared.

    Raises ImportError where lm-eval is not installed.
    """
    samples = task.samples[:limit]
    requests = [request for sample in samples for request in sample.requests]
    engine = Local(model, dtype="float32")
    harness = _harness(engine, batch)
    kind = "loglikelihoods" if isinstance(requests[0], Likelihood) else "generate"
    _ = engine.shares  # tried once, before the clock runs
    begin = timing.clock()
    ours = getattr(engine, kind)(requests)
    middle = timing.clock()
    theirs = harness(requests)
    end = timing.clock()
    return Comparison(task.name, len(samples), middle - begin, end - middle, *disagreement(task, samples, ours, theirs))


def disagreement(task: Task, samples: list[Sample], ours: list, theirs: list) -> tuple[float, int, int]:
    """(largest difference of two log-likelihoods, samples predicted otherwise, samples with another text)."""
    difference, predictions, texts, place = 0.0, 0, 0, 0
    for sample in samples:
        here, there = (found[place : place + len(sample.requests)] for found in (ours, theirs))
        place += len(sample.requests)
        if not isinstance(sample.requests[0], Likelihood):
            texts += here != there
            continue
        difference = max(difference, *(abs(one.logprob - other.logprob) for one, other in zip(here, there)))
        predictions += task.score(sample, here) != task.score(sample, there) or _first(here) != _first(there)
    return difference, predictions, texts


def _first(outcomes: list[Outcome]) -> tuple:
    """The most probable answer, and which ones are greedy."""
    values = [outcome.logprob for outcome in outcomes]
    return values.index(max(values)), [outcome.greedy for outcome in outcomes]


def _harness(engine: Local, batch: int):
    """A function from requests to answers, computed by the harness on the engine's model."""
    from lm_eval.api.instance import Instance  # loads slowly, only where the harness itself is run
    from lm_eval.models.huggingface import HFLM  # as above

    there = HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=batch)

    def answer(requests):
        if isinstance(requests[0], Likelihood):
            given = [(request.context, request.continuation) for request in requests]
            instances = [Instance("loglikelihood", {}, each, number) for number, each in enumerate(given)]
            counts = [len(engine.tokenizer(each, add_special_tokens=False).input_ids) for _, each in given]
            found = there.loglikelihood(instances, disable_tqdm=True)
            return [Outcome(value, greedy, count) for (value, greedy), count in zip(found, counts)]
        given = [
            (each.prompt, {"until": list(each.until), "max_gen_toks": each.max_new_tokens, "do_sample": False})
            for each in requests
        ]
        instances = [Instance("generate_until", {}, each, number) for number, each in enumerate(given)]
        return there.generate_until(instances, disable_tqdm=True)

    return answer
