"""Requests for tests of the evaluation: texts of a few letters, with shared beginnings, and plain answers to them."""

import random

import torch

from lib.tasks.task import Generation, Likelihood, Sample, Task

WORDS = ("alpha ", "beta ", "gamma, ", "delta. ", "eps", "zeta\n")


def likelihoods(count: int = 6, *, seed: int = 0) -> list[Likelihood]:
    """`count` questions with four endings each; two of three begin with the same twenty words."""
    generator = random.Random(seed)
    begin, found = "".join(generator.choices(WORDS, k=20)), []
    for number in range(count):
        question = begin * (number % 3 > 0) + "".join(generator.choices(WORDS, k=generator.randint(1, 12))) + "?"
        found += [Likelihood(question, ending) for ending in (" A", " Bc", " beta", " alpha and more")]
    return found


def generations(count: int = 6, *, seed: int = 0, until=("a",), most: int = 24) -> list[Generation]:
    """`count` prompts of unequal length, each with its own number of new tokens."""
    generator = random.Random(seed)
    prompts = [request.context for request in likelihoods(count, seed=seed)[::4]]
    return [Generation(prompt, tuple(until), generator.randint(1, most)) for prompt in prompts]


def task(requests: list, *, name: str = "tiny", metric: str = "acc", data: dict | None = None) -> Task:
    """A task whose samples take four likelihoods, or one generation, each."""
    size = 4 if isinstance(requests[0], Likelihood) else 1
    groups = [tuple(requests[start : start + size]) for start in range(0, len(requests), size)]
    samples = [Sample(f"s{place}", f"g{place // 2}", each, place % 2) for place, each in enumerate(groups)]

    def score(sample, answers):
        if isinstance(answers[0], str):
            return {metric: float(len(answers[0]) % 2 == sample.target)}
        values = [each.logprob for each in answers]
        return {metric: float(values.index(max(values)) % 2 == sample.target)}

    return Task(name, samples, (metric,), {metric: 0.5}, {metric: 0.6}, data or {}, score)


def naive(model, request: Likelihood) -> tuple[float, bool]:
    """Log-likelihood and greediness by one forward pass; a byte is a token."""
    ids = model.tokenizer(request.context + request.continuation).input_ids
    count = len(ids) - len(model.tokenizer(request.context.rstrip()).input_ids)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0, -count:].double()
    targets = torch.tensor(ids[-count:])
    return logits.log_softmax(-1)[range(count), targets].sum().item(), bool((logits.argmax(-1) == targets).all())


def greedy(model, request: Generation) -> str:
    """transformers' own greedy generation, one prompt at a time, cut at the first stop string."""
    tokens = model.tokenizer(request.prompt, return_tensors="pt").input_ids
    made = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=request.max_new_tokens, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    text = model.tokenizer.decode(made[0, tokens.shape[1] :], skip_special_tokens=True)
    for stop in request.until:
        text = text.split(stop)[0]
    return text
