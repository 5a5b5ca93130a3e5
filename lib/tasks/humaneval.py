"""HumanEval: complete a Python function so that its tests pass (Chen et al. 2021, arXiv 2107.03374).

Scoring runs what a model wrote, in `lib.metrics.sandbox`, and only where `load(..., allow_execution=True)` said so.
"""

from functools import partial

import numpy as np

from lib.metrics import sandbox
from lib.tasks.form import Form, generation
from lib.tasks.prompt import Prompt
from lib.tasks.task import Sample

UNTIL = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
NEW_TOKENS = 1024


def build(row: dict, examples: list[dict], chat) -> Sample:
    """The beginning of a function, to be continued."""
    return generation(row, Prompt(row["prompt"]).render(chat), UNTIL, NEW_TOKENS, _target(row))


def build_instruction(row: dict, examples: list[dict], chat) -> Sample:
    """The same as an instruction; the answer begins with the function's head inside a block of code."""
    code = f"```python\n{row['prompt']}\n"
    question = f"Write a solution to the following problem and make sure that it passes the tests:\n{code}```\n"
    prompt = Prompt(question, prefix=f"Here is the completed function:\n{code}")
    return generation(row, prompt.render(chat), UNTIL, NEW_TOKENS, _target(row))


def _target(row):
    return {"prompt": row["prompt"], "test": row["test"], "entry_point": row["entry_point"]}


def program(sample: Sample, text: str) -> str:
    """The program of one answer: the function's head and what was written, up to the end of a block of code."""
    return sample.target["prompt"] + text


def program_of_block(sample: Sample, text: str) -> str:
    """The same for an answer inside a block of code, which ends at the next three backticks."""
    return sample.target["prompt"] + text.split("```", 1)[0]


def score(sample: Sample, texts: list[str], assemble=program) -> dict[str, float]:
    """pass@1, and pass@10 and pass@100 where as many answers were given."""
    target = sample.target
    run = partial(sandbox.run, test=target["test"], entry_point=target["entry_point"], preamble=target["prompt"])
    verdicts = {text: run(assemble(sample, text), allow_execution=True).passed for text in set(texts)}
    passed = sum(verdicts[text] for text in texts)
    return {f"pass@{k}": pass_at_k(len(texts), passed, k) for k in (1, 10, 100) if k <= len(texts)}


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate that one of k answers passes, from n answers of which c passed: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021, equation 1, computed as the product that avoids large binomials. Raises `ValueError` for k > n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"n={n}, c={c}, k={k}; 0 <= c <= n and 1 <= k <= n are allowed; generate more answers.")
    if n - c < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(n - c + 1, n + 1)))


def nothing(samples: list[Sample]) -> dict[str, float]:
    """Zero: no guess and no constant answer passes."""
    return {"pass@1": 0.0, "pass@10": 0.0, "pass@100": 0.0}


RULES = {"metrics": ("pass@1",), "chance": nothing, "constant": nothing, "executes": True}
score_block = partial(score, assemble=program_of_block)

TASKS: dict[str, Form] = {
    "humaneval": Form("humaneval", build, score, **RULES),
    "humaneval_instruct": Form("humaneval", build_instruction, score_block, **RULES),
}
