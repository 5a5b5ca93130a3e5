"""How far a generated text agrees with a reference: BLEU, ROUGE, SARI, exact match, edit similarity.

BLEU is sacrebleu's and nltk's, ROUGE that of rouge-score and of the package rouge: published tasks differ in which of
them they use, and their numbers are comparable only with the same one. SARI is our own, from its paper.
"""

import difflib
import re
import warnings
from collections import Counter
from functools import lru_cache

from rouge import Rouge


def sentence_scores(text: str, reference: str) -> dict[str, float]:
    """bleu, rouge1, rouge2 and rougeLsum (F-measures) of one text, each 0 to 100, as T5's evaluation sets them up."""
    import sacrebleu  # loads slowly, only for BLEU

    bleu = sacrebleu.corpus_bleu([text], [[reference]], smooth_method="exp", smooth_value=0.0, tokenize="intl")
    text, reference = text.replace(" . ", ".\n"), reference.replace(" . ", ".\n")
    found = _scorer(("rouge1", "rouge2", "rougeLsum")).score(reference, text)
    return {"bleu": bleu.score, **{kind: 100 * value.fmeasure for kind, value in found.items()}}


def corpus_bleu(texts: list[str], references: list[str]) -> float:
    """BLEU of all texts together, 0 to 100 (Papineni et al. 2002, doi:10.3115/1073083.1073135; 13a tokens)."""
    import sacrebleu  # loads slowly, only for BLEU

    return sacrebleu.corpus_bleu(texts, [references]).score


def rouge(text: str, references: list[str]) -> dict[str, float]:
    """rouge1, rouge2, rougeL: the best F-measure over the references, 0 to 1, by rouge-score (Lin 2004)."""
    kinds = ("rouge1", "rouge2", "rougeL")
    found = [_scorer(kinds).score(reference, text) for reference in references]
    return {kind: max(each[kind].fmeasure for each in found) for kind in kinds}


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F-measure, 0 to 1, by the package `rouge` (LongBench's and TRACE's); 0 where a side has no words."""
    if not _words(text) or not _words(reference):
        return 0.0
    return Rouge(metrics=["rouge-l"]).get_scores([text], [reference], avg=True)["rouge-l"]["f"]


def bleu(text: str, reference: str, order: int) -> float:
    """BLEU with equal weights on 1- to `order`-grams, 0 to 1, by nltk on words cut at whitespace and full stops."""
    from nltk.translate.bleu_score import sentence_bleu  # loads slowly, only for TRACE's BLEU

    words, expected = _words(text), _words(reference)
    if not words or not expected:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of n-grams without a match, which are counted as such
        return float(sentence_bleu([expected], words, (1 / order,) * order))


def edit_similarity(text: str, reference: str) -> float:
    """Matching characters, 0 to 100 in whole numbers, as fuzzywuzzy's `ratio` does without a compiled matcher.

    The ratio 2 M / T of Ratcliff and Obershelp: M characters in matching blocks, T characters in both texts.
    """
    if not text or not reference:
        return 0.0
    return float(round(100 * difflib.SequenceMatcher(None, text, reference).ratio()))


def sari(source: str, text: str, references: list[str]) -> float:
    """SARI, 0 to 100: what a simplification keeps, adds and deletes, against references (Xu et al. 2016, eq. 1 to 7).

    The mean over n = 1..4 and over F(keep), F(add) and P(delete), on lower-case tokens (13a). 0/0 counts as 1, and
    keep's recall is over all that references keep: both as in the `evaluate` package's metric.
    """
    texts = [_tokens(each) for each in (source, text)]
    expected = [_tokens(reference) for reference in references]
    scores = [
        _operations(*(_ngrams(each, n) for each in texts), [_ngrams(e, n) for e in expected]) for n in range(1, 5)
    ]
    return 100 * sum(sum(each) / 3 for each in scores) / 4


def _operations(source, text, references):
    """F(keep), F(add), P(delete) for the n-grams of one order; counts are multiplied by the number of references."""
    times = len(references)
    wanted = sum(references, Counter())
    source, text = (Counter({gram: times * count for gram, count in each.items()}) for each in (source, text))
    kept, right = source & text, source & text & wanted
    keep = _f_measure(
        _ratio(sum(right[gram] / kept[gram] for gram in right), len(kept)),
        _ratio(sum(right.values()), sum((source & wanted).values())),
    )
    dropped = source - text
    good = dropped - wanted
    delete = _ratio(sum(good[gram] / dropped[gram] for gram in good), len(dropped))
    added, expected = set(text) - set(source), set(wanted) - set(source)
    hits = len(added & expected)
    return keep, _f_measure(_ratio(hits, len(added)), _ratio(hits, len(expected))), delete


def _ratio(part, whole):
    return part / whole if whole else 1.0


def _f_measure(precision, recall):
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _ngrams(tokens, n):
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def _tokens(text):
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a  # loads slowly, only for SARI

    return Tokenizer13a()(text.lower()).split()


def _words(text):
    return [word for word in re.split(r"\s|\.", text) if word]


@lru_cache(maxsize=4)
def _scorer(kinds):
    from rouge_score.rouge_scorer import RougeScorer  # loads slowly, only for summaries and TruthfulQA

    return RougeScorer(list(kinds))
