"""CommonsenseQA with seven worked examples and a chain of thought (Wei et al. 2022, arXiv 2201.11903, table 24)."""

from collections import Counter

from lib.tasks.extraction import exact, extract
from lib.tasks.form import Form, generation, given
from lib.tasks.prompt import Prompt
from lib.tasks.task import Sample

ANSWER = r"[Ss]o the answer is \(?([a-eA-E])\)?"

EXAMPLES = (
    (
        "What do people use to absorb extra ink from a fountain pen?",
        ("shirt pocket", "calligrapher's hand", "inkwell", "desk drawer", "blotter"),
        "The answer must be an item that can absorb ink. Of the above choices, only blotters are used to absorb ink.",
        "e",
    ),
    (
        "What home entertainment equipment requires cable?",
        ("radio shack", "substation", "television", "cabinet"),
        "The answer must require cable. Of the above choices, only television requires cable.",
        "c",
    ),
    (
        "The fox walked from the city into the forest, what was it looking for?",
        ("pretty flowers", "hen house", "natural habitat", "storybook"),
        "The answer must be something in the forest. Of the above choices, only natural habitat is in the forest.",
        "b",  # as published, though the reasoning names (c): published numbers are based on this prompt
    ),
    (
        "Sammy wanted to go to where the people were. Where might he go?",
        ("populated areas", "race track", "desert", "apartment", "roadblock"),
        "The answer must be a place with a lot of people. Of the above choices, only populated areas have a lot of "
        "people.",
        "a",
    ),
    (
        "Where do you put your grapes just before checking out?",
        ("mouth", "grocery cart", "super market", "fruit basket", "fruit market"),
        "The answer should be the place where grocery items are placed before checking out. Of the above choices, "
        "grocery cart makes the most sense for holding grocery items.",
        "b",
    ),
    (
        "Google Maps and other highway and street GPS services have replaced what?",
        ("united states", "mexico", "countryside", "atlas"),
        "The answer must be something that used to do what Google Maps and GPS services do, which is to give "
        "directions. Of the above choices, only atlases are used to give directions.",
        "d",
    ),
    (
        "Before getting a divorce, what did the wife feel who was doing all the work?",
        ("harder", "anguish", "bitterness", "tears", "sadness"),
        "The answer should be the feeling of someone getting divorced who was doing all the work. Of the above "
        "choices, the closest feeling is bitterness.",
        "c",
    ),
)


def _question(row):
    choices = "".join(f"\n({letter}) {choice}" for letter, choice in zip("abcde", row["choices"]))
    return f"Q: {row['question']}\nAnswer Choices:{choices}\nA:"


def build(row: dict, examples: list[dict], chat) -> Sample:
    """A question after worked examples; the target is the letter of the right choice."""
    shots = tuple((_question(shot), f"{shot['thought']} So the answer is ({shot['letter']}).") for shot in examples)
    text = Prompt(_question(row), shots).render(chat)
    return generation(row, text, ("Q:", "\n\n"), 256, "abcde"[row["answer"]])


def score(sample: Sample, texts: list[str]) -> dict[str, float]:
    """exact_match of the letter after "So the answer is"."""
    return {"exact_match": exact(extract(ANSWER, texts[0]), sample.target, lower=True)}


def chance(samples: list[Sample]) -> dict[str, float]:
    """One of five choices."""
    return {"exact_match": 0.2}


def constant(samples: list[Sample]) -> dict[str, float]:
    """Always the same letter: the most frequent one."""
    return {"exact_match": Counter(sample.target for sample in samples).most_common(1)[0][1] / len(samples)}


_FIELDS = ("question", "choices", "thought", "letter")
_WORKED = given(*(dict(zip(_FIELDS, example)) for example in EXAMPLES))

TASKS: dict[str, Form] = {
    "commonsenseqa_thought": Form(
        "commonsenseqa",
        build,
        score,
        ("exact_match",),
        ("validation",),
        7,
        _WORKED,
        chance,
        constant,
    )
}
