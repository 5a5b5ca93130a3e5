"""The language and the case of a response."""

from functools import lru_cache

from langdetect import PROFILES_DIRECTORY, DetectorFactory, LangDetectException

from lib.metrics.instructions.lengths import split_sentences
from lib.metrics.instructions.relation import holds

SEED = 0  # langdetect draws random n-grams: unseeded, a few verdicts change from run to run


def is_language(response: str, *, language: str) -> bool:
    """The response is in the language with this ISO 639-1 code; where none can be detected, it counts as followed."""
    return detect(response) in (language, None)


def is_english_capitals(response: str) -> bool:
    """All cased letters are capitals, and the language is English or can't be told."""
    return response.isupper() and is_language(response, language="en")


def is_english_lowercase(response: str) -> bool:
    """No capital letters, and the language is English or can't be told."""
    return response.islower() and is_language(response, language="en")


def capital_words(response: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """The number of words all in capitals, as NLTK's word tokenizer splits them (a hyphenated word is one)."""
    from nltk.tokenize import NLTKWordTokenizer  # loads slowly, only for words in capitals

    words = [word for sentence in split_sentences(response) for word in NLTKWordTokenizer().tokenize(sentence)]
    return holds(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def detect(text: str) -> str | None:
    """ISO 639-1 code by langdetect with a seed of its own, None where it cannot be detected."""
    detector = _factory().create()
    detector.append(text)
    try:
        return detector.detect()
    except LangDetectException:
        return None


@lru_cache(maxsize=1)
def _factory():
    """langdetect's profiles, loaded once; the seed stands on this factory, not on the class that others use."""
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.seed = SEED
    return factory
