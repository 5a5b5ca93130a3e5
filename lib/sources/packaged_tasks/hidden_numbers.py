"""Numbers hidden in a long text (RULER's form): the text is Python's language reference, the depth varies."""

import random

from lib.sources import builtin_text

LENGTHS = (1000, 2000, 4000)  # characters of the haystack
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
CITIES = ("Lisbon", "Oslo", "Quito", "Hanoi", "Accra", "Perth", "Turin", "Lyon", "Cusco", "Riga", "Bergen", "Kyoto")


def rows() -> tuple[list[dict], str]:
    """Rows with context, city and number; two for each length and depth."""

    documents, origin = builtin_text.documents("test")
    text, generator, made = " ".join(" ".join(documents).split()), random.Random(0), []
    for length in LENGTHS:
        for depth in DEPTHS * 2:
            start = generator.randrange(len(text) - length)
            words = text[start : start + length].split(" ")[1:-1]
            city, number = generator.choice(CITIES), str(generator.randrange(10**6, 10**7))
            words.insert(round(depth * len(words)), f"The special magic number for {city} is: {number}.")
            made.append({"length": length, "depth": depth, "context": " ".join(words), "city": city, "number": number})
    return made, f"numbers hidden in {origin}"
