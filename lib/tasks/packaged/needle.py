"""A number hidden in a long text (RULER's form): the text is Python's language reference, the depth varies."""

from lib.tasks.form import generation
from lib.tasks.long_context import nothing, score_needle
from lib.tasks.prompt import Prompt
from lib.tasks.task import Sample


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
