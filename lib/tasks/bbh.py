"""BIG-Bench Hard: 27 kinds of problems, three worked examples each with a chain of thought (arXiv 2210.09261)."""

import re

from lib.sources import tasks
from lib.tasks.extraction import exact, extract, most_frequent
from lib.tasks.form import Form, generation
from lib.tasks.prompt import Prompt
from lib.tasks.task import Sample

ANSWER = "(?<=the answer is )(.*)(?=.)"
UNTIL = ("</s>", "Q", "\n\n")
_THINK = "A: Let's think step by step.\n"


def examples() -> dict[str, list[dict]]:
    """The examples of each kind, cut out of its published prompt: description, then `Q: ... A: ...` in turn."""
    return {row["group"]: cut(row["prompt"]) for row in tasks.load("bbh_prompts", "train").rows}


def cut(prompt: str) -> list[dict]:
    """Description, question and answer of each example in a published prompt."""
    description, *parts = re.split(r"\n\nQ: ", prompt)
    pairs = [part.split(f"\n{_THINK.strip()}", 1) for part in parts]
    return [{"description": description, "question": question, "answer": answer.strip()} for question, answer in pairs]


def build(row: dict, examples: list[dict], chat) -> Sample:
    """A problem after its kind's description and examples."""
    shots = tuple((f"Q: {shot['question']}\n{_THINK}", shot["answer"]) for shot in examples)
    description = examples[0]["description"] + "\n\n" if examples else ""
    prompt = Prompt(f"Q: {row['input']}\n{_THINK}", shots, description, delimiter="")
    return generation(row, prompt.render(chat), UNTIL, 1024, row["target"])


def score(sample: Sample, texts: list[str]) -> dict[str, float]:
    """exact_match of what follows "the answer is", without its last character (the full stop)."""
    return {"exact_match": exact(extract(ANSWER, texts[0]), sample.target)}


def chance(samples: list[Sample]) -> dict[str, float]:
    """Guessing among the options that a problem lists, or between the two answers of its kind; 0 for free answers."""
    answers: dict[str, set[str]] = {}
    for sample in samples:
        answers.setdefault(sample.group, set()).add(sample.target)
    return {"exact_match": sum(_share(sample, answers[sample.group]) for sample in samples) / len(samples)}


def _share(sample, answers):
    question = sample.requests[0].prompt.rsplit("Q: ", 1)[-1]
    options = len(re.findall(r"^\([A-Z]\)", question, re.M))
    if options:
        return 1 / options
    return 0.5 if {answer.lower() for answer in answers} <= _BINARY else 0.0


_BINARY = {"yes", "no", "true", "false", "valid", "invalid", "plausible", "implausible"}


def constant(samples: list[Sample]) -> dict[str, float]:
    """Always the same answer to one kind of problem: the most frequent one."""
    return {"exact_match": most_frequent(samples)}


TASKS: dict[str, Form] = {
    "bbh": Form("bbh", build, score, ("exact_match",), ("test",), 3, examples, chance, constant, parts=True)
}
