"""Word problems with small numbers, made from a few templates (GSM8K's form: a solution that ends in `#### N`)."""

import random

COUNT = 60
NAMES = ("Ada", "Bram", "Cleo", "Dara", "Emil", "Fay", "Gus", "Hana")
THINGS = ("apples", "marbles", "stamps", "pencils", "shells", "coins")


def rows() -> tuple[list[dict], str]:
    """Rows with question, answer and template; the same on every machine."""
    generator = random.Random(0)
    made = []
    for number in range(COUNT):
        make = TEMPLATES[number % len(TEMPLATES)]
        name, other = generator.sample(NAMES, 2)
        a, b, c = (generator.randint(2, 12) for _ in range(3))
        question, steps, result = make(name, other, generator.choice(THINGS), a, b, c)
        made.append({"template": make.__name__, "question": question, "answer": f"{steps}\n#### {result}"})
    return made, f"{COUNT} word problems made by a fixed generator"


def add(name, other, thing, a, b, c):
    """a + b + c."""
    text = f"{name} has {a} {thing}. {other} gives {name} {b} more, and {name} finds another {c}. "
    return text + f"How many {thing} does {name} have now?", f"{a} + {b} + {c} = {a + b + c}.", a + b + c


def take(name, other, thing, a, b, c):
    """a + b + c minus b."""
    text = f"{name} has {a + b + c} {thing} and gives {b} of them to {other}. "
    return text + f"How many {thing} does {name} have left?", f"{a + b + c} - {b} = {a + c}.", a + c


def times(name, other, thing, a, b, c):
    """a * b + c."""
    text = f"{name} buys {a} bags with {b} {thing} in each. At home, {name} already has {c} {thing}. "
    steps = f"The bags hold {a} * {b} = {a * b}. With those at home, {a * b} + {c} = {a * b + c}."
    return text + f"How many {thing} does {name} have in all?", steps, a * b + c


def share(name, other, thing, a, b, c):
    """a * b divided by a."""
    text = f"{name} shares {a * b} {thing} equally among {a} friends. "
    return text + f"How many {thing} does each friend get?", f"{a * b} / {a} = {b}.", b


def compare(name, other, thing, a, b, c):
    """(a + b) - a, asked the other way round."""
    text = f"{name} has {a} {thing}. {other} has {b} more {thing} than {name}. "
    steps = f"{other} has {a} + {b} = {a + b}. Together they have {a} + {a + b} = {2 * a + b}."
    return text + f"How many {thing} do they have together?", steps, 2 * a + b


TEMPLATES = (add, take, times, share, compare)
