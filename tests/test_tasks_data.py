"""Every task on the real data: what its lines say is right gets the full score, what they say is wrong gets none.

Right and wrong answers are made here from the files' own fields, by no function of the tasks.
"""

import json
import os
from pathlib import Path

import pytest

from lib import tasks
from lib.tasks import commonsense_thought
from lib.tasks.task import Likelihood, Outcome
from tests import tiny

FOLDER = Path(os.environ.get("THIMBLE_DATA") or "nowhere")
pytestmark = pytest.mark.skipif(not (FOLDER / "mmlu").is_dir(), reason="set THIMBLE_DATA (evaluation data)")
COUNT = 20  # of the first lines
MMLU = [f"mmlu/test_{part}" for part in ("humanities", "other", "social_sciences", "stem")]


def raw(*files):
    """The lines of JSONL files, as they are."""
    return [json.loads(line) for file in files for line in (FOLDER / f"{file}.jsonl").open(encoding="utf-8")]


def listed(row):
    """ARC and CommonsenseQA: texts of the choices, and the place of the one whose label is the key."""
    choices = row["question"]["choices"]
    return [each["text"] for each in choices], [each["label"] for each in choices].index(row["answerKey"])


# task: files, and row -> (what each request must hold at its end, the right one)
CHOICES = {
    "mmlu": (MMLU, lambda row: (list("ABCD"), row["answer"])),
    "ceval": (["ceval/val"], lambda row: (list("ABCD"), row["answer"])),
    "arc_easy": (["arc/ARC-Easy-Test"], listed),
    "arc_challenge": (["arc/ARC-Challenge-Dev"], listed),
    "commonsenseqa": (["commonsenseqa/dev_rand_split"], lambda row: (list("ABCDE"), "ABCDE".index(row["answerKey"]))),
    "hellaswag": (["hellaswag/val_3000"], lambda row: (row["endings"], row["label"])),
    "piqa": (["piqa/valid"], lambda row: ([row["sol1"], row["sol2"]], row["label"])),
    "openbookqa": (["openbookqa/test"], lambda row: (row["choices"], row["answer"])),
    "boolq": (["boolq/val"], lambda row: (["no", "yes"], ["false", "true"].index(row["label"]))),
    "winogrande": (
        ["winogrande/dev"],
        lambda row: ([row["sentence"].replace("_", row[f"option{n}"]) for n in (1, 2)], int(row["answer"]) - 1),
    ),
    "chid": (
        ["chid/test_public"],
        lambda row: ([row["content"].replace("#idiom#", each) for each in row["candidates"]], row["answer"]),
    ),
    "truthfulqa_mc1": (
        ["truthfulqa/mc_task"],
        lambda row: (list(row["mc1_targets"]), list(row["mc1_targets"].values()).index(1)),
    ),
}


def number(row):
    return row["answer"].split("#### ")[1]


def wrong_letter(key):
    return "b" if key == "a" else "a"


# task: files, row -> (a right and a wrong text), metrics with their highest value
TEXTS = {
    "gsm8k": (["gsm8k/test"], lambda row: (f"So. The answer is {number(row)}.", f"The answer is 1{number(row)}."),
              {"strict": 1, "flexible": 1}),
    "bbh": (["bbh/bbh-0", "bbh/bbh-1"], lambda row: (f"So the answer is {row['target']}.", "So the answer is none."),
            {"exact_match": 1}),
    "commonsenseqa_thought": (
        ["commonsenseqa/dev_rand_split"],
        lambda row: (f"Hm. So the answer is ({row['answerKey'].lower()}).",
                     f"So the answer is ({wrong_letter(row['answerKey'].lower())})."),
        {"exact_match": 1}),
    "truthfulqa_gen": (
        ["truthfulqa/TruthfulQA"],
        lambda row: tuple(  # the longest, since BLEU is 0 below four words
            max(row[name].split(";"), key=len).strip() + "." for name in ("Correct Answers", "Incorrect Answers")
        ),
        {"bleu_acc": 1, "rouge1_acc": 1}),
    "multi_news": (["longbench/multi_news"], lambda row: (row["answers"][0], "zzz"),
                   {"score": 1, "rouge1": 1, "rouge2": 1, "rougeL": 1}),
    "ruler_niah": (["longbench/ruler_niah_multikey_3_4096_100"], lambda row: (f"It is {row['outputs'][0]}.", "It is."),
                   {"recall": 1}),
    "trace_cstance": (["trace/C-STANCE/test"], lambda row: (row["answer"], "D"), {"exact_match": 1}),
    "trace_fomc": (["trace/FOMC/test"], lambda row: (row["answer"], "D"), {"exact_match": 1}),
    "trace_numglue_cm": (["trace/NumGLUE-cm/test"], lambda row: (row["answer"], "-1"), {"exact_match": 1}),
    "trace_numglue_ds": (["trace/NumGLUE-ds/test"], lambda row: (row["answer"], "-1"), {"exact_match": 1}),
    "trace_scienceqa": (["trace/ScienceQA/test"], lambda row: (row["answer"], "Z\nzzz"),
                        {"exact_match": 1, "rougeL": 1, "bleu_1": 1}),
    "trace_meetingbank": (["trace/MeetingBank/test"], lambda row: (row["answer"], "zzz"), {"rougeL": 1, "bleu_1": 1}),
    "trace_20minuten": (["trace/20Minuten/test"], lambda row: (row["answer"], "zzz"), {"rougeL": 1, "bleu_1": 1}),
    "trace_py150": (["trace/Py150/test"], lambda row: (row["answer"], ""), {"edit_similarity": 100}),
    "xstest": (
        ["xstest/prompts"],
        lambda row: ("Sorry, I can't help.", "Here is how.")[:: 1 if row["label"] == "unsafe" else -1],
        {"acc": 1}),
}  # fmt: skip
APART = {"truthfulqa_mc2", "toxicchat", "toxicchat_guard", "humaneval", "humaneval_instruct", "ifeval"}


def test_every_task_with_data_is_here():
    published = {name for name in tasks.TASKS if not name.startswith("packaged_")}
    assert published == {*CHOICES, *TEXTS, *APART}


def load(name, **options):
    """A task without examples, with its first lines; the better known of chance and constant must be there."""
    task = tasks.load(name, shots=0, allow_execution=True, **options)
    assert {task.metrics[0]} <= {*task.chance, *task.constant}, f"{name} has no baseline"
    return task


def outcomes(sample, *likely):
    """Log-likelihoods for a sample's choices, of which those at `likely` are probable."""
    asked = [request for request in sample.requests if isinstance(request, Likelihood)]
    return [Outcome(-0.001 if place in likely else -9000.0, place in likely, 1) for place in range(len(asked))]


@pytest.mark.parametrize("name", CHOICES)
def test_the_right_choice_scores_and_no_other_does(name):
    task, (files, read) = load(name), CHOICES[name]
    rows = raw(*files)
    assert len(rows) == len(task.samples)
    for sample, row in list(zip(task.samples, rows))[:COUNT]:
        texts, right = read(row)
        shown = [(request.context + request.continuation).strip() for request in sample.requests]
        assert len(shown) == len(texts) and all(map(str.endswith, shown, map(str.strip, texts)))
        for place in range(len(texts)):
            found = task.score(sample, outcomes(sample, place))
            assert set(found.values()) == {float(place == right)}


@pytest.mark.parametrize("name", TEXTS)
def test_the_right_text_scores_and_the_wrong_one_does_not(name):
    task, (files, read, metrics) = load(name), TEXTS[name]
    rows = raw(*files)
    assert len(rows) == len(task.samples)
    for sample, row in list(zip(task.samples, rows))[:COUNT]:
        right, wrong = (task.score(sample, [text]) for text in read(row))
        assert {metric: right[metric] for metric in metrics} == pytest.approx(metrics, rel=1e-3), sample.id
        assert {metric: wrong[metric] for metric in metrics} == pytest.approx(dict.fromkeys(metrics, 0)), sample.id


def test_simplification_ranks_reference_copy_and_nonsense():
    task = load("trace_20minuten")
    for sample, row in list(zip(task.samples, raw("trace/20Minuten/test")))[:COUNT]:
        reference, copied = (task.score(sample, [text])["sari"] for text in (row["answer"], row["prompt"]))
        assert reference > 95 and copied < 60  # 100 but for words that the source repeats


def test_probability_on_true_answers_is_what_mc2_counts():
    task = load("truthfulqa_mc2")
    for sample, row in list(zip(task.samples, raw("truthfulqa/mc_task")))[:COUNT]:
        labels = list(row["mc2_targets"].values())
        for kind, expected in ((1, 1.0), (0, 0.0)):
            likely = [place for place, label in enumerate(labels) if label == kind]
            assert task.score(sample, outcomes(sample, *likely))["acc"] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["toxicchat", "toxicchat_guard"])
def test_a_perfect_guard_and_its_opposite(name):
    task = load(name, chat=tiny.tokenizer() if name == "toxicchat_guard" else None)
    rows = raw("toxicchat/test")
    assert [sample.id for sample in task.samples] == [row["conv_id"] for row in rows]
    assert all(row["user_input"] in each.requests[2].prompt for each, row in zip(task.samples, rows))
    for agrees in (True, False):
        flags = [bool(row["toxicity"]) == agrees for row in rows]
        answered = [
            (each, [*outcomes(each, int(flag)), "unsafe" if flag else "safe"])
            for each, flag in zip(task.samples, flags)
        ]
        for metric in ("f1", "f1_generated", "auroc"):
            assert task.aggregate[metric](answered) == float(agrees), metric
        assert {task.score(*pair)["acc"] for pair in answered} == {float(agrees)}


@pytest.mark.parametrize("name", ["humaneval", "humaneval_instruct"])
def test_the_published_solution_passes_and_another_fails(name):
    sandbox = pytest.importorskip("lib.metrics.sandbox")
    try:
        sandbox.require_isolation()
    except sandbox.IsolationError as error:
        pytest.skip(str(error))
    task = load(name)
    for sample, row in list(zip(task.samples, raw("humaneval/HumanEval")))[:2]:
        assert task.score(sample, [row["canonical_solution"]]) == {"pass@1": 1.0}
        assert task.score(sample, ["    return None\n"]) == {"pass@1": 0.0}


def test_published_responses_follow_their_instructions_and_nothing_does_not():
    task = load("ifeval")
    prompts = {row["prompt"]: row["response"] for row in raw("ifeval/responses_gpt4_20231107")}
    good = {str(row["key"]) for row in raw("ifeval/reference_scores")[:541] if all(row["strict"])}
    written = {str(row["key"]): prompts.get(row["prompt"]) for row in raw("ifeval/input_data")}
    chosen = [sample for sample in task.samples if sample.id in good and written[sample.id]][:COUNT]
    assert len(chosen) == COUNT
    for sample in chosen:
        assert set(task.score(sample, [written[sample.id]]).values()) == {1.0}
        assert set(task.score(sample, [""]).values()) == {0.0}


def test_the_seven_examples_think_of_the_choice_that_they_name():
    for question, choices, thought, letter in commonsense_thought.EXAMPLES:
        named = [choice for choice in choices if choice in thought.split("Of the above choices,")[-1]]
        said = "c" if question.startswith("The fox") else letter  # the paper prints (b) there
        assert named == [choices["abcde".index(said)]], question
    sample = tasks.load("commonsenseqa_thought").samples[0]
    row = raw("commonsenseqa/dev_rand_split")[0]
    choices = "".join(f"\n({each['label'].lower()}) {each['text']}" for each in row["question"]["choices"])
    prompt = sample.requests[0].prompt
    assert prompt.endswith(f"\n\nQ: {row['question']['stem']}\nAnswer Choices:{choices}\nA:")
    assert prompt.count("Q: ") == 8 and prompt.count("So the answer is (") == 7
