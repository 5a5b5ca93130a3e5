"""RedPajama-v2's quality signals that need no download: 21 of a document and 6 of each of its lines.

    signals.of("Some text.")["rps_doc_word_count"]        for document in signals.stage(documents): ...

Definitions as in github.com/togethercomputer/RedPajama-Data (arXiv 2411.12372, appendix), its quirks included: stop
words are compared with words in their case, "without letters" means without a to z, so all Chinese counts, symbols are
counted by raw words. Numbers are rounded to 8 digits as there. What is repeated is found by what is shorter: a run of n
words that occurs twice is made of two runs of n - 1 words that do, so long runs are looked for only where short ones
repeat.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from lib.curation import words
from lib.curation.document import Document
from lib.curation.tally import Tally

DIGITS = 8
_SENTENCE = re.compile(r"\b[^.!?]+[.!?]*")
_ENDS, _ELLIPSES = (".", "!", "?", "”"), ("...", "…")
_BULLETS = tuple("•‣▶◀◦■□▪▫–")
_UPPER = bytes(range(ord("A"), ord("Z") + 1))
_DIGITS = b"0123456789"
TOP, DUPLICATE = range(2, 5), range(5, 11)


def stage(documents: Iterable[Document], *, tally: Tally | None = None, language: str = "en") -> Iterator[Document]:
    """The documents with their signals, in `metadata["signals"]`; None where a text has no words to speak of."""
    tally = tally or Tally("signals")
    words.stop_words(language)
    for document in documents:
        yield tally.keep(document.having(signals=of(document.text, language)))


def of(text: str, language: str = "en") -> dict:
    """All signals by name: of a document a number or None, of its lines (`rps_lines_...`) a list with one a line."""
    bare, raw, lines = words.without_punctuation(text), words.raw(text), _split(text)
    plain = words.joined(bare)
    found = plain.split()
    return {
        **_content(text, plain, found, raw, words.stop_words(language)),
        **_language(text, found, raw, lines),
        **repetition(found),
        **_lines(lines, bare),
    }


def _share(part: float, whole: int) -> float | None:
    return round(part / whole, DIGITS) if whole else None


def _content(text, plain, found, raw, stop_words):
    return {
        "rps_doc_curly_bracket": _share(text.count("{") + text.count("}"), len(text)) or 0.0,
        "rps_doc_lorem_ipsum": _share(plain.count("lorem ipsum"), len(plain)) or 0.0,
        "rps_doc_stop_word_fraction": _share(sum(map(stop_words.__contains__, raw)), len(raw)) if found else 0.0,
    }


def _language(text, found, raw, lines):
    count, counts = len(found), Counter(found)
    several = Counter(counts.values())  # how many words occur once, twice, ...: few terms for the sum
    entropy = -sum(times * share * math.log(share) for times, share in ((k, n / count) for n, k in several.items()))
    return {
        "rps_doc_frac_all_caps_words": _share(sum(map(str.isupper, raw)), len(raw)),
        "rps_doc_frac_lines_end_with_ellipsis": _share(
            sum(line.rstrip().endswith(_ELLIPSES) for line in lines), len(lines)
        ),
        "rps_doc_frac_no_alph_words": round(1 - words.with_letter(text) / len(raw), DIGITS) if raw else None,
        "rps_doc_frac_unique_words": _share(len(counts), count),
        "rps_doc_mean_word_length": _share(sum(map(len, found)), count),
        "rps_doc_num_sentences": float(len(_SENTENCE.findall(text))),
        "rps_doc_symbol_to_word_ratio": _share(sum(map(text.count, ("#", "...", "…"))), len(raw)),
        "rps_doc_unigram_entropy": round(entropy, DIGITS) if count else None,
        "rps_doc_word_count": count,
    }


def repetition(found: list[str]) -> dict[str, float]:
    """Shares of the characters that are in the most frequent run of n words, and in any run that occurs twice."""
    signals = {f"rps_doc_frac_chars_top_{n}gram": 0.0 for n in TOP}
    signals |= {f"rps_doc_frac_chars_dupe_{n}grams": 0.0 for n in DUPLICATE}
    total, places = sum(map(len, found)), range(len(found))
    for n in range(2, DUPLICATE.stop):
        runs = list(itertools.pairwise(found)) if n == 2 else [tuple(found[place : place + n]) for place in places]
        counts = {run: count for run, count in Counter(runs).items() if count > 1}
        if not counts:
            break
        places = [place for place, run in zip(places, runs) if run in counts]
        if n in TOP:
            best = max(counts, key=counts.__getitem__)  # of equally frequent ones the first
            signals[f"rps_doc_frac_chars_top_{n}gram"] = _share(counts[best] * sum(map(len, best)), total)
        else:
            within = {word for place in places for word in range(place, place + n)}
            signals[f"rps_doc_frac_chars_dupe_{n}grams"] = _share(sum(len(found[word]) for word in within), total)
        begun = set(places)
        places = [place for place in places if place + 1 in begun]
    return signals


def _split(text: str) -> list[str]:
    """The lines with their line ends."""
    lines = [line + "\n" for line in text.split("\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _lines(lines: list[str], bare: str) -> dict[str, list]:
    plain = [words.joined(line) for line in bare.split("\n")[: len(lines)]]
    return {
        "rps_lines_ending_with_terminal_punctution_mark": [float(line.rstrip().endswith(_ENDS)) for line in lines],
        "rps_lines_javascript_counts": [
            float("javascript" in line and line.split().count("javascript")) for line in plain
        ],
        "rps_lines_num_words": [line.count(" ") + 1 if line else 0 for line in plain],
        "rps_lines_numerical_chars_fraction": [_of_kind(line, _DIGITS, str.isnumeric) for line in plain],
        "rps_lines_start_with_bulletpoint": [float(line.lstrip().startswith(_BULLETS)) for line in lines] or None,
        "rps_lines_uppercase_letter_fraction": [_of_kind(line, _UPPER, str.isupper) for line in lines],
    }


def _of_kind(line: str, signs: bytes, is_one) -> float:
    """The share of the characters of a line that `is_one` says yes to; of ASCII these are `signs`."""
    if line.isascii():
        return round(1 - len(line.encode().translate(None, signs)) / len(line), DIGITS) if line else 0.0
    return _share(sum(map(is_one, line)), len(line))
