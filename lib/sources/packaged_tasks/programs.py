"""Twelve small Python functions to be completed, with tests, written for this project (HumanEval's form)."""

# name and arguments; what it does; an example; a solution; tests as (arguments, result)
PROBLEMS = (
    ("double(number)", "Return twice the number.", "double(4)", "return 2 * number", (("3", "6"), ("-1", "-2"))),
    ("largest(values)", "Return the largest of the values.", "largest([1, 5, 2])", "return max(values)",
     (("[3, 9, 4]", "9"), ("[-2, -7]", "-2"))),
    ("vowels(text)", "Return how many of the letters a, e, i, o, u are in the text.", "vowels('banana')",
     "return sum(letter in 'aeiou' for letter in text)", (("'queue'", "4"), ("'rhythm'", "0"))),
    ("backwards(text)", "Return the text with its letters in reverse order.", "backwards('abc')", "return text[::-1]",
     (("'stone'", "'enots'"), ("''", "''"))),
    ("evens(values)", "Return a list of the even values, in their order.", "evens([1, 2, 3, 4])",
     "return [value for value in values if value % 2 == 0]", (("[5, 8, 10, 7]", "[8, 10]"), ("[1]", "[]"))),
    ("mean(values)", "Return the arithmetic mean of the values.", "mean([1, 2, 3])",
     "return sum(values) / len(values)", (("[2, 4]", "3.0"), ("[5]", "5.0"))),
    ("is_palindrome(text)", "Return True if the text reads the same in both directions, else False.",
     "is_palindrome('level')", "return text == text[::-1]", (("'noon'", "True"), ("'moon'", "False"))),
    ("factorial(number)", "Return the product of the whole numbers from 1 to number.", "factorial(4)",
     "return 1 if number < 2 else number * factorial(number - 1)", (("5", "120"), ("0", "1"))),
    ("longest(words)", "Return the longest of the words; the first of them if there are several.",
     "longest(['a', 'tree'])", "return max(words, key=len)", (("['on', 'the', 'sea']", "'the'"), ("['x']", "'x'"))),
    ("unique(values)", "Return the values without repetitions, in the order of their first appearance.",
     "unique([1, 1, 2])", "return list(dict.fromkeys(values))", (("[3, 1, 3, 2]", "[3, 1, 2]"), ("[]", "[]"))),
    ("count_words(text)", "Return how many words, separated by spaces, are in the text.", "count_words('a b')",
     "return len(text.split())", (("'the old oak'", "3"), ("''", "0"))),
    ("clamp(number, low, high)", "Return the number, but not less than low and not more than high.",
     "clamp(7, 0, 5)", "return min(max(number, low), high)", (("3, 0, 5", "3"), ("-2, 0, 5", "0"))),
)  # fmt: skip


def rows() -> tuple[list[dict], str]:
    """Rows with prompt (the head of a function), entry_point, canonical_solution and test."""
    made = []
    for head, purpose, example, solution, tests in PROBLEMS:
        name = head.split("(")[0]
        names = {}
        exec(f"def {head}:\n    {solution}\n", names)  # our own solution, for the example's result
        result = repr(eval(example, names))
        prompt = f'def {head}:\n    """{purpose}\n\n    >>> {example}\n    {result}\n    """\n'
        cases = "".join(f"    assert candidate({arguments}) == {value}\n" for arguments, value in tests)
        made.append(
            {
                "id": f"packaged/{name}",
                "prompt": prompt,
                "entry_point": name,
                "canonical_solution": f"    {solution}\n",
                "test": f"def check(candidate):\n{cases}",
            }
        )
    return made, f"{len(made)} functions written for this project"
