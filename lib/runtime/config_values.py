"""Reads single values of a configuration; ValueError for another kind names key, value and what is allowed."""

from lib.runtime.rope_frequencies import wrong


def whole(found: dict, key: str, least: int = 1) -> int:
    """A whole number from `least`."""
    value = found[key]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise wrong(key, value, f"a whole number from {least}")
    return value


def number(found: dict, key: str) -> float:
    """A number from 0.0."""
    value = found[key]
    if not isinstance(value, float) or not 0 <= value < float("inf"):
        raise wrong(key, value, "a number from 0.0")
    return value


def flag(found: dict, key: str) -> bool:
    """True or false."""
    if not isinstance(found[key], bool):
        raise wrong(key, found[key], "true or false")
    return found[key]


def one_of(found: dict, key: str, allowed: tuple[str, ...]) -> str:
    """One of the words in `allowed`."""
    if not isinstance(found[key], str) or found[key] not in allowed:
        raise wrong(key, found[key], f"one of {', '.join(allowed)}")
    return found[key]
