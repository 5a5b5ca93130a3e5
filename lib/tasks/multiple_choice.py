"""Multiple choice by log-likelihood: the answer whose text is most probable after the question.

Where a prompt shows its choices (MMLU), the continuations are letters; elsewhere (ARC, HellaSwag) they are the choices
themselves, and `acc_norm` divides each log-likelihood by its choice's number of characters, so that short choices have
no advantage. Templates and rules are those of lm-evaluation-harness 0.4.13.
"""

from collections import Counter

import numpy as np

from lib.tasks.form import Form
from lib.tasks.prompt import Prompt
from lib.tasks.task import Likelihood, Outcome, Sample

LETTERS = "ABCDEFGHIJ"


def choice(data: str, template: str, *, shown: bool = False, **options) -> Form:
    """A task whose template is filled with the fields of a row (and A, B, ... for its choices).

    shown: the prompt shows the choices, and the answer is a letter. options: what else `Form` takes.
    """
    metrics = options.pop("metrics", ("acc",) if shown else ("acc", "acc_norm"))

    def build(row, examples, chat):
        answers = list(LETTERS[: len(row["choices"])]) if shown else row["choices"]
        shots = tuple((fill(template, shot), _answer(shot, shown)) for shot in examples)
        return ask(row, answers, Prompt(fill(template, row), shots), chat)

    return Form(data, build, score, metrics, chance=chance, constant=constant, **options)


def fill(template: str, row: dict) -> str:
    """The template with the row's fields, and its choices as A, B, ..."""
    choices = dict(zip(LETTERS, row["choices"]))
    fields = {**choices, **row}
    if isinstance(fields.get("question"), str) and "{stripped}" in template:
        fields["stripped"] = fields["question"].strip()
    return template.format(**fields)


def ask(row: dict, answers: list[str], prompt: Prompt, chat) -> Sample:
    """The sample that compares `answers` after a prompt; in a chat no space comes before an answer."""
    context, delimiter = prompt.render(chat), "" if chat is not None else prompt.delimiter
    requests = tuple(Likelihood(context, delimiter + answer) for answer in answers)
    target = {"answer": row["answer"], "characters": [len(answer) for answer in answers]}
    return Sample(row["id"], row["group"], requests, target)


def score(sample: Sample, outcomes: list[Outcome]) -> dict[str, float]:
    """acc: the most probable answer is right; acc_norm: so per character. The first of equals counts as the choice."""
    found = np.array([outcome.logprob for outcome in outcomes])
    normed = found / np.array(sample.target["characters"], dtype=float)
    right = sample.target["answer"]
    return {"acc": float(np.argmax(found) == right), "acc_norm": float(np.argmax(normed) == right)}


def chance(samples: list[Sample]) -> dict[str, float]:
    """The mean share of one answer among all."""
    value = float(np.mean([1 / len(sample.requests) for sample in samples]))
    return {"acc": value, "acc_norm": value}


def constant(samples: list[Sample]) -> dict[str, float]:
    """Always the same letter or position: the most frequent one."""
    value = Counter(sample.target["answer"] for sample in samples).most_common(1)[0][1] / len(samples)
    return {"acc": value, "acc_norm": value}


def _answer(row, shown) -> str:
    return LETTERS[row["answer"]] if shown else row["choices"][row["answer"]]


_COMMONSENSE = "Question: {stripped}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nE. {E}\nAnswer:"

TASKS: dict[str, Form] = {
    "arc_easy": choice("arc_easy", "Question: {question}\nAnswer:"),
    "arc_challenge": choice("arc_challenge", "Question: {question}\nAnswer:", splits=("test", "validation")),
    "hellaswag": choice("hellaswag", "{question}", splits=("validation",)),
    "piqa": choice("piqa", "Question: {question}\nAnswer:", splits=("validation",)),
    "openbookqa": choice("openbookqa", "{question}"),
    "boolq": choice("boolq", "{passage}\nQuestion: {question}?\nAnswer:", metrics=("acc",), splits=("validation",)),
    "commonsenseqa": choice("commonsenseqa", _COMMONSENSE, shown=True, splits=("validation",)),
}
