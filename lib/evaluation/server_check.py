"""Answers the same requests here and by a server of the same model, and compares the answers.

    python -m lib.evaluation.server_check MODEL http://localhost:8000/v1 NAME [task ...]

MODEL is loaded in float32, which the server should serve too (vLLM: --dtype float32). Tasks of likelihoods are compared
number by number, texts letter by letter; a task whose name ends in "+chat" forms its prompts by the chat template, so
that a first token which the template writes must reach the model once.
"""

import argparse
from dataclasses import dataclass

from lib import tasks
from lib.evaluation import run
from lib.evaluation.endpoint import Endpoint
from lib.evaluation.lm_eval_check import disagreement
from lib.evaluation.local import Local
from lib.sources import models
from lib.tasks.task import Likelihood, Task

TASKS = ("packaged_facts", "packaged_continuation", "packaged_arithmetic", "packaged_facts+chat")


@dataclass(frozen=True)
class Agreement:
    """`difference`: the largest between two log-likelihoods (0 for texts); the counts are of samples."""

    task: str
    samples: int
    difference: float
    other_predictions: int
    other_texts: int

    def __str__(self):
        return (
            f"{self.task}: {self.samples} samples, log-likelihoods differ by {self.difference:.1e} at most, "
            f"{self.other_predictions} predictions and {self.other_texts} texts differ"
        )


def compare(engine: Local, endpoint: Endpoint, task: Task) -> Agreement:
    """Answer all requests of `task` by `engine` and by `endpoint`; raises what the endpoint raises."""
    requests = [request for sample in task.samples for request in sample.requests]
    kind = "loglikelihoods" if isinstance(requests[0], Likelihood) else "generate"
    ours, theirs = (getattr(each, kind)(requests) for each in (engine, endpoint))
    return Agreement(task.name, len(task.samples), *disagreement(task, task.samples, ours, theirs))


def main() -> None:
    """Compare task after task, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("url")
    parser.add_argument("name", help="what the server calls the model")
    parser.add_argument("tasks", nargs="*", default=TASKS)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=48)
    given = parser.parse_args()
    model, tokenizer = models.load(given.model, dtype="float32")
    engine, endpoint = Local(model), Endpoint(given.url, given.name)
    for each in given.tasks:
        name, _, chat = each.partition("+")
        task = tasks.load(name, count=given.count, chat=tokenizer if chat else None)
        print(f"{chat or 'plain'} {compare(engine, endpoint, run.capped(task, given.new_tokens))}", flush=True)


if __name__ == "__main__":
    main()
