"""A number hidden in a long text (RULER's form): the text is Python's language reference, the depth varies."""

import random

from lib.tasks.form import generation
from lib.tasks.long_context import nothing, score_needle
from lib.tasks.prompt import Prompt
from lib.tasks.task import Sample

LENGTHS = (1000, 2000, 4000)  # characters of the haystack
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
CITIES = ("Lisbon", "Oslo", "Quito", "Hanoi", "Accra", "Perth", "Turin", "Lyon", "Cusco", "Riga", "Bergen", "Kyoto")


def rows() -> tuple[list[dict], str]:
    """Rows with context, city and number; two for each length and depth."""
    from lib.sources import topics

    documents, origin = topics.documents("test")
    text, generator, made = " ".join(" ".join(documents).split()), random.Random(0), []
    for length in LENGTHS:
        for depth in DEPTHS * 2:
            start = generator.randrange(len(text) - length)
            words = text[start : start + length].split(" ")[1:-1]
            city, number = generator.choice(CITIES), str(generator.randrange(10**6, 10**7))
            words.insert(round(depth * len(words)), f"The special magic number for {city} is: {number}.")
            made.append({"length": length, "depth": depth, "context": " ".join(words), "city": city, "number": number})
    return made, f"numbers hidden in {origin}"


def build(row: dict, examples: list[dict], chat) -> Sample:
    """The text, the question, and the beginning of the answer."""
    question = (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about "
        f"the number afterwards.\n{row['context']}\nWhat is the special magic number for {row['city']} mentioned in "
        "the provided text?"
    )
    prefix = f"The special magic number for {row['city']} mentioned in the provided text is"
    return generation(row, Prompt(question, prefix=prefix).render(chat), (), 24, [row["number"]])


score = score_needle
RULES = {"chance": nothing, "constant": nothing}
