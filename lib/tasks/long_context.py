"""Long prompts: summaries of news (LongBench, arXiv 2308.14508) and needles in a haystack (RULER, arXiv 2404.06654)."""

import re

from lib.metrics import text_overlap
from lib.tasks import summaries
from lib.tasks.form import Form, generation
from lib.tasks.prompt import Prompt
from lib.tasks.task import Sample

_NEWS = (
    "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\n"
    "Now, write a one-page summary of all the news.\n\nSummary:"
)
_QUESTION = re.compile(
    r"(.*mentioned in the provided text\?) (The special magic .* mentioned in the provided text.*)", re.S
)


def build_news(row: dict, examples: list[dict], chat) -> Sample:
    """LongBench's prompt for multi_news."""
    text = Prompt(_NEWS.replace("{context}", row["context"])).render(chat)
    return generation(row, text, (), 512, row["answers"])


def score_news(sample: Sample, texts: list[str]) -> dict[str, float]:
    """score: the best ROUGE-L over the references, as LongBench computes it; rouge1, rouge2, rougeL by rouge-score."""
    text = texts[0].strip()
    return {
        "score": max(text_overlap.rouge_l(text, answer) for answer in sample.target),
        **text_overlap.rouge(text, sample.target),
    }


def build_needle(row: dict, examples: list[dict], chat) -> Sample:
    """RULER's prompt; what it puts after the question begins the answer, also in a chat."""
    found = _QUESTION.fullmatch(row["input"])
    prompt = Prompt(found[1], prefix=found[2]) if found else Prompt(row["input"])
    return generation(row, prompt.render(chat), (), 128, row["outputs"])


def score_needle(sample: Sample, texts: list[str]) -> dict[str, float]:
    """recall: the share of the needles that the text holds, in any case."""
    text = re.sub(r"[\x00-\x1f]", "\n", texts[0].strip()).strip().lower()
    return {"recall": sum(needle.lower() in text for needle in sample.target) / len(sample.target)}


def nothing(samples: list[Sample]) -> dict[str, float]:
    """Zero: an unknown value is never guessed, and no constant answer is right twice."""
    return {"recall": 0.0}


_NEWS_METRICS = ("score", "rouge1", "rouge2", "rougeL")
_source = summaries.after("\n\nNews:\n", "\n\nNow, write")
_trivial = summaries.constant(score_news, _source, sentences=10)  # a page is asked for: references have about as many

TASKS: dict[str, Form] = {
    "multi_news": Form("multi_news", build_news, score_news, _NEWS_METRICS, constant=_trivial),
    "ruler_niah": Form("ruler_niah", build_needle, score_needle, ("recall",), chance=nothing, constant=nothing),
}
