"""Guards against misleading numbers: checks that stop an unfair comparison, and marks beside a score.

A guard model with a reported accuracy of 92.2 % was worse than always answering "safe" (92.7 %); here its score would
carry a mark. Comparing systems that differ in more than the model is an error, and a test sample that occurs in the
training text is reported by name.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from lib.metrics import intervals
from lib.sources import paragraphs, streams

WORDS = 13
FEWEST = 8
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_CONDITIONS = ("sha256", "split", "shots", "chat", "count", "each", "seed", "repeats", "new_tokens")


def against_constant(values, constant: float, groups=None, *, lower_is_better: bool = False) -> str | None:
    """A mark where per-sample scores [n] are no better than the best constant answer's; None otherwise."""
    return _skill(intervals.mean(values, groups), constant, lower_is_better)


def _skill(found: intervals.Interval, constant: float, lower_is_better: bool) -> str | None:
    """The mark of a value with its interval beside the constant answer's."""
    sign = -1 if lower_is_better else 1
    if sign * (found.value - constant) <= 0:
        return f"no better than the best constant answer ({found.value:.3f} against {constant:.3f})"
    if found.low <= constant <= found.high:
        return f"not told from the best constant answer ({constant:.3f} lies in {found.low:.3f} to {found.high:.3f})"
    return None


def marks(evaluation, metric: str | None = None) -> list[str]:
    """Warnings beside one score of an `evaluation`: constant answer, cut prompts, empty answers.

    metric: the main one by default. The list is empty for a score without warnings.
    """
    metric = metric or next(iter(evaluation))
    score, found = evaluation[metric], []
    if score.baseline is not None:  # the value shown, pooled or not, and its own interval
        span = replace(evaluation.intervals[metric], value=score.value)
        found.append(_skill(span, score.baseline, score.higher_is_better is False))
    if evaluation.truncated:
        cut = f"{evaluation.truncated} samples lost the left end of their prompt"
        found.append(f"{cut}: it is longer than the model's context")
    if evaluation.empty:
        found.append(f"{evaluation.empty} answers are empty")
    return [mark for mark in found if mark]


def same_conditions(systems: dict) -> None:
    """Raise ValueError for evaluations `systems` (name -> evaluation) that differ in anything but the model.

    Compared: the task, its data, the engine's settings (sampling, seed, a server's chat template), the samples in
    their order, and the requests with their caps.
    The error names the two systems, what differs and both values.
    """
    names = list(systems)
    if len(names) < 2:
        raise ValueError(f"{len(names)} systems; two or more are compared; give the original and what was made of it.")
    conditions = {name: _conditions(evaluation) for name, evaluation in systems.items()}
    for name in names[1:]:
        for what, value in conditions[names[0]].items():
            other = conditions[name][what]
            if value != other:
                raise ValueError(
                    f"{what} of {names[0]!r} is {_short(value)}, that of {name!r} is {_short(other)}; systems that "
                    "differ in the model alone are comparable; evaluate both with the same task, settings and samples."
                )


def _conditions(evaluation) -> dict:
    given = {key: evaluation.data.get(key) for key in _CONDITIONS}
    given = {"task": evaluation.task, **given, "settings": evaluation.settings}
    return given | {"samples": [row.id for row in evaluation.rows], "requests": evaluation.requests}


def _short(value) -> str:
    if not isinstance(value, list):
        text = repr(value)
        return text if len(text) < 120 else text[:117] + "..."
    return f"{len(value)} ({', '.join(map(str, value[:3]))}, ...)"


@dataclass(frozen=True)
class Contamination:
    """found: sample -> the shared words in a row. short: samples with too few words to check.
    checked: number of samples that were checked."""

    found: dict[str, str]
    short: tuple[str, ...]
    checked: int

    def __str__(self):
        which = f": {', '.join(list(self.found)[:5])}" if self.found else ""
        short = f" ({len(self.short)} too short to tell)" if self.short else ""
        return f"{len(self.found)} of {self.checked} samples occur in the text{which}{short}"


def contamination(samples: dict[str, str], texts: Iterable[str], *, words: int = WORDS) -> Contamination:
    """Which `samples` (id -> text) share `words` words in a row with `texts`, whatever their case and punctuation.

    A sample with fewer words than that is looked up as a whole, and not at all below 8 words, which many texts share
    by chance. A Chinese, Japanese or Korean character counts as a word. Of documents that stay in their files
    (`streams.Documents`) a few megabytes are in memory at a time. Source of the rule: Language Models are Few-Shot
    Learners, arXiv 2005.14165, appendix C.
    """
    wanted, short = _wanted(samples, words)
    hits: dict[str, str] = {}
    for text in streams.in_pieces(texts):
        for name, passage in _hits(text, wanted, words):
            hits.setdefault(name, passage)
    ordered = {name: hits[name] for name in samples if name in hits}
    return Contamination(ordered, tuple(short), len(samples) - len(short))


def contaminated(samples: dict[str, str], texts: Iterable[str], *, words: int = WORDS) -> dict[int, tuple[str, str]]:
    """Which of `texts` (by place) hold a sample: {place: (the first such sample, the shared words)}.

    By the rule, and with the errors, of `contamination`, which says which samples are held.
    """
    wanted, _ = _wanted(samples, words)
    found = {}
    for place, text in enumerate(streams.in_pieces(texts)):
        if hit := next(iter(_hits(text, wanted, words)), None):
            found[place] = hit
    return found


def _wanted(samples: dict[str, str], words: int) -> tuple[dict[int, dict[str, list[str]]], list[str]]:
    """({number of words in a row: {the words: samples}}, the samples that are too short to be looked for)."""
    if words < FEWEST:
        raise ValueError(
            f"words={words}; {FEWEST} or more in a row are allowed, fewer are shared by chance; 13 is usual."
        )
    wanted, short = {}, []
    for name, text in samples.items():
        found = _words(text)
        length = min(words, len(found))
        if length < FEWEST:
            short.append(name)
            continue
        for passage in _passages(found, length):
            wanted.setdefault(length, {}).setdefault(passage, []).append(name)
    return wanted, short


def _hits(text: Iterable[str], wanted: dict, words: int) -> Iterator[tuple[str, str]]:
    """(Sample, shared words) of a text in pieces, in the text's order."""
    before: list[str] = []
    for some, _ in paragraphs.fragments(text):
        found = before + _words(some)
        for length, known in wanted.items():
            for passage in filter(known.__contains__, _passages(found, length)):
                for name in known[passage]:
                    yield name, passage
        before = found[max(0, len(found) - words + 1) :]


def refuse_contaminated(samples: dict[str, str], texts: Iterable[str], *, name: str = "the text") -> None:
    """Raise ValueError, naming the first, where a test sample occurs in a calibration or training text."""
    found = contamination(samples, texts)
    if found.found:
        sample, passage = next(iter(found.found.items()))
        raise ValueError(
            f"{len(found.found)} of {found.checked} test samples occur in {name}, first {sample!r} ({passage!r}); "
            "texts without test samples are allowed; take these documents out (lib.sources.contamination.without)."
        )


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _passages(words: list[str], length: int) -> list[str]:
    return [" ".join(words[start : start + length]) for start in range(len(words) - length + 1)]
