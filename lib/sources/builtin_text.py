"""The packaged text: CPython's language reference, which every Python carries as `pydoc_data.topics`."""

import hashlib
import platform
import pydoc_data.topics

_SHARE = 0.10  # fraction of the characters for test and for valid each; the rest is train
_LONG = 80  # characters from which a repeated paragraph is a copy and no coincidence


def documents(split: str) -> tuple[list[str], str]:
    """The topics of a split, in order of name, and where they come from; about 80/10/10 % of the characters.

    Topics are drawn by a hash of their names, so the split is the same on every machine with the same Python.
    Some topics repeat sections of others (`compound` holds `while`): such a family stays together in one split,
    so that nothing in test or valid was read in train.
    """
    topics = {name: text for name, text in pydoc_data.topics.topics.items() if isinstance(text, str) and text.strip()}
    chosen = sorted(name for name, where in assign(topics).items() if where == split)
    origin = f"pydoc_data.topics of Python {platform.python_version()}, {len(chosen)} of {len(topics)} topics"
    return [topics[name] for name in chosen], origin


def assign(topics: dict[str, str]) -> dict[str, str]:
    """Topic -> split: families, in the order of their hashes, fill test, then valid; what has no room is train."""
    room = dict.fromkeys(("test", "valid"), _SHARE * sum(map(len, topics.values())))
    splits = {}
    for family in sorted(families(topics), key=lambda names: hashlib.sha256(names[0].encode()).digest()):
        size = sum(len(topics[name]) for name in family)
        where = next((split for split, left in room.items() if size <= left), "train")
        if where in room:
            room[where] -= size
        splits.update(dict.fromkeys(family, where))
    return splits


def families(topics: dict[str, str]) -> list[list[str]]:
    """Topics that share a long paragraph, directly or through others, as sorted lists of names."""
    family = {name: {name} for name in topics}
    first = {}
    for name, text in topics.items():
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) < _LONG:
                continue
            other = first.setdefault(words, name)
            if family[other] is not family[name]:
                family[other] |= family[name]
                family.update(dict.fromkeys(family[name], family[other]))
    return [sorted(names) for names in {id(names): names for names in family.values()}.values()]
