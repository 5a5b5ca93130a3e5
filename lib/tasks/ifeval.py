"""IFEval: prompts with instructions that a program can check (Zhou et al. 2023, arXiv 2311.07911)."""

import json
from functools import lru_cache

import numpy as np

from lib.metrics import instruction_following
from lib.tasks.form import Form, generation
from lib.tasks.prompt import Prompt
from lib.tasks.task import Sample


def build(row: dict, examples: list[dict], chat) -> Sample:
    """The prompt as it is; the target is its instructions and their arguments."""
    target = {"instructions": row["instructions"], "arguments": row["arguments"]}
    return generation(row, Prompt(row["prompt"]).render(chat), (), 1280, target)


def score(sample: Sample, texts: list[str]) -> dict[str, float]:
    """Whether all instructions were followed (prompt level), and which share of them (instruction level)."""
    followed = _follow(sample, texts)
    return {
        "prompt_strict": float(all(followed.strict)),
        "prompt_loose": float(all(followed.loose)),
        "instruction_strict": float(np.mean(followed.strict)),
        "instruction_loose": float(np.mean(followed.loose)),
    }


def _follow(sample, texts):
    return _checked(texts[0], json.dumps(sample.target, sort_keys=True))


@lru_cache(maxsize=1 << 14)  # a bootstrap over prompts asks for the same verdicts in every draw
def _checked(text, target):
    wanted = json.loads(target)
    return instruction_following.follow(text, wanted["instructions"], wanted["arguments"])


def _pooled(kind):
    """The share of followed instructions among all, not the mean over prompts."""

    def aggregate(answered):
        return float(np.mean([each for sample, texts in answered for each in getattr(_follow(sample, texts), kind)]))

    return aggregate


def constant(samples: list[Sample]) -> dict[str, float]:
    """The better of two answers that ignore the prompt: one short paragraph of plain words, and three."""
    paragraph = "This is an answer in one paragraph of plain words without anything special in it."
    found = [_whole(samples, candidate) for candidate in (paragraph, "\n\n".join([paragraph] * 3))]
    return {metric: max(each[metric] for each in found) for metric in METRICS}


def _whole(samples, text):
    """Every metric of one text as the answer to all `samples`."""
    answered = [(sample, [text]) for sample in samples]
    scores = [score(*pair) for pair in answered]
    means = {metric: float(np.mean([each[metric] for each in scores])) for metric in METRICS}
    return means | {metric: aggregate(answered) for metric, aggregate in AGGREGATE.items()}


METRICS = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
AGGREGATE = {"instruction_strict": _pooled("strict"), "instruction_loose": _pooled("loose")}
RULES = {
    "build": build,
    "score": score,
    "metrics": METRICS,
    "constant": constant,
    "aggregate": AGGREGATE,
}

TASKS: dict[str, Form] = {"ifeval": Form("ifeval", **RULES)}
