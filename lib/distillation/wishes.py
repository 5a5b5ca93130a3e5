"""Wishes about the form of an answer, added to prompts: whoever answers them learns to do as it is told.

An instruction that says how to answer is followed or not, which is what IFEval measures. Collections of chats hold few
of these, so a student that learns from answers to them alone loses the skill first. The wishes were written for this
project, of the same sort as IFEval's and in other words; none of IFEval's prompts is read.
"""

import random
from collections.abc import Sequence

WISHES = (
    "Write everything in lower case.",
    "USE CAPITAL LETTERS ONLY.",
    "Do without any comma.",
    "Answer in one sentence.",
    "Answer in at most forty words.",
    "Write at least two hundred words.",
    "Write exactly three paragraphs.",
    "Give the answer as a list of four points that begin with *.",
    "Give the answer as a numbered list.",
    "Put a title above the answer, between << and >>.",
    "Set two important parts in *italics*.",
    "Divide the answer into parts that are called PART 1, PART 2 and so on.",
    "Answer with a JSON object and nothing else.",
    "Put the whole answer between double quotation marks.",
    "End with a P.S. in a line of its own.",
    "End with the words: That is all I know.",
    "Repeat my question word for word before you answer it.",
    "Give two different answers with a line of ****** between them.",
    "Leave places to fill in, such as [name], at least twice.",
    "Use the word therefore at least twice.",
    "Avoid the word very.",
    "Begin each sentence on a new line.",
    "Answer in Spanish.",
    "Answer in German.",
)


def added(prompts: Sequence[str], *, seed: int = 0) -> list[str]:
    """Each of `prompts` with one of `WISHES` behind it, drawn by `seed`."""
    draw = random.Random(seed)
    return [f"{prompt}\n\n{draw.choice(WISHES)}" for prompt in prompts]
