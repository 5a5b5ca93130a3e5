"""TRACE: eight data sets of a benchmark for continual learning (Wang et al. 2023, arXiv 2310.06762).

Prompts are used as published, without examples. Scores are those of TRACE's evaluation: exact match for stances and
numbers, BLEU-1, BLEU-4 and ROUGE-L for summaries and reasons, SARI for simplification, edit similarity for code.
Answers are generated greedily where TRACE samples at temperature 0.1.
"""

import re
from collections import Counter

from lib.metrics import text_overlap
from lib.tasks import summaries
from lib.tasks.form import Form, generation
from lib.tasks.prompt import Prompt
from lib.tasks.task import Sample

NEW_TOKENS = 256


def build(row: dict, examples: list[dict], chat) -> Sample:
    """The published prompt; the target keeps it too, since SARI compares with the source."""
    target = {"answer": row["answer"], "source": row["prompt"]}
    return generation(row, Prompt(row["prompt"]).render(chat), (), NEW_TOKENS, target)


def build_line(row: dict, examples: list[dict], chat) -> Sample:
    """The same for code: one line is asked for, as the answers are."""
    target = {"answer": row["answer"], "source": row["prompt"]}
    return generation(row, Prompt(row["prompt"]).render(chat), ("\n", "<EOL>"), NEW_TOKENS, target)


def score_exact(sample: Sample, texts: list[str]) -> dict[str, float]:
    """exact_match of the whole text (white space at its ends does not count)."""
    return {"exact_match": float(texts[0].strip() == sample.target["answer"].strip())}


def score_summary(sample: Sample, texts: list[str]) -> dict[str, float]:
    """bleu_1, bleu_4 and rougeL against the reference, 0 to 1."""
    return _agreement(texts[0], sample.target["answer"])


def score_reasons(sample: Sample, texts: list[str]) -> dict[str, float]:
    """ScienceQA: the first character is the answer (exact_match), what follows the second the reasons."""
    text, answer = texts[0].lstrip(), sample.target["answer"]
    return {"exact_match": float(text[:1] == answer[:1]), **_agreement(text[2:], answer[2:])}


def score_simplified(sample: Sample, texts: list[str]) -> dict[str, float]:
    """20Minuten: SARI against source and reference, 0 to 100, beside the scores of a summary."""
    found = text_overlap.sari(sample.target["source"], texts[0], [sample.target["answer"]])
    return {"sari": found, **_agreement(texts[0], sample.target["answer"])}


def score_code(sample: Sample, texts: list[str]) -> dict[str, float]:
    """Py150: edit similarity, 0 to 100, after marks for literals are replaced by what they stand for."""
    return {"edit_similarity": text_overlap.edit_similarity(literals(texts[0]), literals(sample.target["answer"]))}


def literals(code: str) -> str:
    """Code with `<STR_LIT:x>` as x, and with empty marks as "", 0 or nothing."""
    for mark, value in (("<NUM_LIT>", "0"), ("<STR_LIT>", ""), ("<CHAR_LIT>", "")):
        code = code.replace(mark, value)
    return re.sub(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", r"\1", code, flags=re.S)


def constant_exact(samples: list[Sample]) -> dict[str, float]:
    """Always the most frequent answer."""
    return {"exact_match": _share(sample.target["answer"].strip() for sample in samples)}


def constant_reasons(samples: list[Sample]) -> dict[str, float]:
    """Always the most frequent letter."""
    return {"exact_match": _share(sample.target["answer"][:1] for sample in samples)}


def constant_code(samples: list[Sample]) -> dict[str, float]:
    """Always the same line: the best of the 20 most frequent ones."""
    lines = Counter(sample.target["answer"] for sample in samples).most_common(20)
    found = [sum(score_code(sample, [line])["edit_similarity"] for sample in samples) for line, _ in lines]
    return {"edit_similarity": max(found) / len(samples)}


def chance_stance(samples: list[Sample]) -> dict[str, float]:
    """One of the three letters that the prompt names."""
    return {"exact_match": 1 / 3}


def chance_reasons(samples: list[Sample]) -> dict[str, float]:
    """One of the choices that the prompt lists."""
    counts = [len(re.findall(r"^[A-Z]\. ", sample.target["source"], re.M)) or 1 for sample in samples]
    return {"exact_match": sum(1 / count for count in counts) / len(samples)}


def _agreement(text, reference):
    return {
        "rougeL": text_overlap.rouge_l(text, reference),
        "bleu_1": text_overlap.bleu(text, reference, 1),
        "bleu_4": text_overlap.bleu(text, reference, 4),
    }


def _share(answers):
    counts = Counter(answers)
    return counts.most_common(1)[0][1] / counts.total()


_SUMMARY = ("rougeL", "bleu_1", "bleu_4")
_meeting = summaries.constant(score_summary, summaries.after("Meeting transcripts:\n", "\nSummary:"))
_simple = summaries.constant(score_simplified, summaries.after("Paragraph:\n", "\n\nSimplification:"), language="de")
_EXACT = {"build": build, "score": score_exact, "metrics": ("exact_match",), "constant": constant_exact}

TASKS: dict[str, Form] = {
    "trace_cstance": Form("trace_cstance", chance=chance_stance, **_EXACT),
    "trace_fomc": Form("trace_fomc", chance=chance_stance, **_EXACT),
    "trace_numglue_cm": Form("trace_numglue_cm", **_EXACT),
    "trace_numglue_ds": Form("trace_numglue_ds", **_EXACT),
    "trace_meetingbank": Form("trace_meetingbank", build, score_summary, _SUMMARY, constant=_meeting),
    "trace_20minuten": Form("trace_20minuten", build, score_simplified, ("sari", *_SUMMARY), constant=_simple),
    "trace_py150": Form("trace_py150", build_line, score_code, ("edit_similarity",), constant=constant_code),
    "trace_scienceqa": Form(
        "trace_scienceqa",
        build,
        score_reasons,
        ("exact_match", *_SUMMARY),
        chance=chance_reasons,
        constant=constant_reasons,
    ),
}
