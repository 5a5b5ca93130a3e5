"""IFEval: does a response follow instructions that a program can check (arXiv 2311.07911)?

Strict: the response as it is. Loose: one of eight variants follows (without the first line, the last, both, and each
of these without asterisks), for answers that are right inside a polite frame or Markdown.

Two of its 541 prompts ask for the frequency of a character that is no letter ("#" in key 1122, "!" in 1129). The
published program, and lm-evaluation-harness's, draw a letter at random in its place; here the character itself is
counted.
"""

import difflib
from dataclasses import dataclass

from lib.metrics.instructions import CHECKS


@dataclass(frozen=True)
class InstructionResults:
    """Verdicts on one response, one per instruction: on the response as it is, and on the best of its variants."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def follow(response: str, instructions: list[str], arguments: list[dict]) -> InstructionResults:
    """Check one response against the instructions of its prompt.

    instructions: identifiers such as "punctuation:no_comma". arguments: for each a dict of its arguments; None means
    "not given". An empty response follows nothing.
    Raises ValueError for an unknown instruction, and for lists of different lengths.
    """
    checks = _checks(instructions, arguments)
    return InstructionResults(
        strict=tuple(_follows(check, response, given) for check, given in checks),
        loose=tuple(any(_follows(check, text, given) for text in variants(response)) for check, given in checks),
    )


def variants(response: str) -> list[str]:
    """The response and its seven loose variants, in the order of the paper (section 2.2)."""
    lines = response.split("\n")
    texts = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return texts + [text.replace("*", "") for text in texts]


def _checks(instructions, arguments) -> list[tuple]:
    if len(instructions) != len(arguments):
        raise ValueError(
            f"{len(instructions)} instructions with {len(arguments)} sets of arguments; as many of one as of the other "
            "are allowed; give an empty dict where an instruction has none."
        )
    for name in instructions:
        if name not in CHECKS:
            near = difflib.get_close_matches(name, CHECKS, 1) or ["see lib/metrics/instructions"]
            raise ValueError(f"instruction {name!r}; {', '.join(CHECKS)} are allowed; nearest: {near[0]}.")
    given = [{key: value for key, value in each.items() if value is not None} for each in arguments]
    return [(CHECKS[name], each) for name, each in zip(instructions, given)]


def _follows(check, response: str, given: dict) -> bool:
    return bool(response.strip()) and check(response, **given)
