"""Prompts with instructions that a program can check, written for this project (IFEval's form)."""

PROMPTS = (
    ("Describe a rainy day in a small town. Do not use any commas.", {"punctuation:no_comma": {}}),
    (
        "Write about your favourite meal. Use the words butter and spoon.",
        {"keywords:existence": {"keywords": ["butter", "spoon"]}},
    ),
    ("Tell me how to plant a tree. Write everything in lower case letters.", {"change_case:english_lowercase": {}}),
    ("Explain what a bridge is for. Answer in capital letters only.", {"change_case:english_capital": {}}),
    (
        "Give me advice for a first day at work, in exactly 3 bullet points. Use markdown bullets such as * this one.",
        {"detectable_format:number_bullet_lists": {"num_bullets": 3}},
    ),
    (
        "Describe the sea without the words water and blue.",
        {"keywords:forbidden_words": {"forbidden_words": ["water", "blue"]}},
    ),
    (
        "Write a short letter to a neighbour. End it with the words: See you soon.",
        {"startend:end_checker": {"end_phrase": "See you soon."}},
    ),
    ("What is a good name for a cat? Put your whole answer in double quotation marks.", {"startend:quotation": {}}),
    (
        "Write a poem about the moon, with a title in double angular brackets such as <<title>>.",
        {"detectable_format:title": {}},
    ),
    (
        "Tell a story about a lost key in at least 60 words.",
        {"length_constraints:number_words": {"relation": "at least", "num_words": 60}},
    ),
    (
        "Say in less than 20 words why people travel.",
        {"length_constraints:number_words": {"relation": "less than", "num_words": 20}},
    ),
    (
        "Thank a friend for a present. At the end, add a postscript that starts with P.S.",
        {"detectable_content:postscript": {"postscript_marker": "P.S."}},
    ),
    (
        "Write an invitation to a party with at least 2 placeholders in square brackets, such as [address].",
        {"detectable_content:number_placeholders": {"num_placeholders": 2}},
    ),
    (
        "Compare tea and coffee. Highlight at least 2 sections with asterisks, like *this*.",
        {"detectable_format:number_highlighted_sections": {"num_highlights": 2}},
    ),
    (
        "Name three colours. Wrap the whole answer in JSON format.",
        {"detectable_format:json_format": {}},
    ),
    (
        "Suggest a sport to a child. Use no commas, and mention the word ball.",
        {"punctuation:no_comma": {}, "keywords:existence": {"keywords": ["ball"]}},
    ),
    (
        "Describe your city in less than 40 words, all in lower case.",
        {
            "length_constraints:number_words": {"relation": "less than", "num_words": 40},
            "change_case:english_lowercase": {},
        },
    ),
    (
        "Explain how to boil an egg. Use the word minutes at least 2 times.",
        {"keywords:frequency": {"keyword": "minutes", "frequency": 2, "relation": "at least"}},
    ),
    (
        "Give two different answers to the question what makes a good day, separated by 6 asterisks: ******",
        {"combination:two_responses": {}},
    ),
    (
        "Write about the wind. The letter w should appear at least 5 times.",
        {"keywords:letter_frequency": {"letter": "w", "let_frequency": 5, "let_relation": "at least"}},
    ),
)


def rows() -> tuple[list[dict], str]:
    """Rows with prompt, instructions and their arguments."""
    made = [
        {"prompt": prompt, "instructions": list(checks), "arguments": list(checks.values())}
        for prompt, checks in PROMPTS
    ]
    return made, f"{len(made)} prompts written for this project"
