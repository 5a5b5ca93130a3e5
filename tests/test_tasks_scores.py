"""How tasks score answers: rules of published evaluators, on answers of our own."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import tasks
from lib.sources import benchmarks
from lib.sources import tasks as source
from lib.sources.packaged_tasks import programs
from lib.tasks import catalogue, humaneval, long_context, summaries, toxicchat, trace, truthfulqa, xstest
from lib.tasks.task import Generation, Outcome, Sample

LABELLED = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=30)


def sample(target, group="g", requests=()):
    return Sample("0", group, requests, target)


# data sets without a pinned commit, and why: the only ones that may be so
NO_COMMIT_KNOWN = "on the Hub, but no commit of it could be looked up without a network"
NOT_ON_THE_HUB = "no copy on the Hub is known that has these rows"
UNPINNED = {
    **dict.fromkeys(("ceval", "bbh", "toxicchat", "xstest", "multi_news"), NO_COMMIT_KNOWN),
    **dict.fromkeys(("chid", "ruler_niah"), NOT_ON_THE_HUB),
    **{
        f"trace_{part}": NOT_ON_THE_HUB
        for part in ("20minuten", "cstance", "fomc", "meetingbank", "numglue_cm", "numglue_ds", "py150", "scienceqa")
    },
}


def test_every_task_names_data_licence_and_citation():
    for name, form in tasks.TASKS.items():
        assert form.metrics and form.data in source.names(), name
    for name, benchmark in benchmarks.BENCHMARKS.items():
        assert benchmark.licence and benchmark.citation and benchmark.files, name


def test_every_data_set_is_pinned_but_for_those_listed():
    found = {name for name, each in benchmarks.BENCHMARKS.items() if each.hub is None or each.revision is None}
    assert found == set(UNPINNED)
    for name, benchmark in benchmarks.BENCHMARKS.items():
        if name not in UNPINNED:
            assert re.fullmatch("[0-9a-f]{40}", benchmark.revision), name
            continue
        assert (benchmark.hub is None) == (UNPINNED[name] == NOT_ON_THE_HUB), name
        assert re.search(r" @ [0-9a-f]{12},", benchmark.origin), f"{name}: say where its files can be had"


def test_what_is_not_pinned_says_so_when_it_comes_from_the_hub(monkeypatch, capsys):
    row = {"prompt": "P", "type": "homonyms", "label": "safe"}
    monkeypatch.delenv("THIMBLE_DATA", raising=False)
    monkeypatch.setattr("datasets.load_dataset", lambda *given, **options: [row])
    monkeypatch.setattr(source.hub, "revision", lambda name: "a" * 40)
    task = tasks.load("xstest")
    assert f"at {'a' * 12}, NOT PINNED" in capsys.readouterr().out and "NOT PINNED" in task.data["source"]


def test_one_table_names_every_task_with_what_it_has_to_beat(monkeypatch, tmp_path):
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    chid = {"id": 1, "content": "前#idiom#后", "candidates": list("甲乙丙丁戊己庚"), "answer": 6}
    (tmp_path / "chid").mkdir()
    (tmp_path / "chid" / "test_public.jsonl").write_text(json.dumps(chid), encoding="utf-8")
    found = catalogue.table().set_index("task")
    assert set(found.index) == set(tasks.TASKS) and found[["licence", "citation", "pinned"]].all(axis=None)
    assert found.loc["chid", ["n", "chance", "constant"]].tolist() == [1, pytest.approx(1 / 7), 1]
    assert found.loc["packaged_facts", "chance"] == 0.25 and found.loc["packaged_facts", "licence"] == "Apache-2.0"
    assert found.loc["gsm8k", ["n", "chance", "constant"]].isna().all()  # its data are not here
    assert found.loc["mmlu", "pinned"] == "cais/mmlu @ c30699e8356d"
    assert found.loc["xstest", "pinned"].startswith("not pinned; files from paul-rottger/")
    with pytest.raises(ValueError, match="unknown"):
        catalogue.table(["chidd"])


@settings(deadline=None, max_examples=30)
@given(LABELLED)
def test_areas_and_f1_equal_scikit_learn(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    toxic, scores = ([pair[which] for pair in pairs] for which in (0, 1))
    if len(set(toxic)) == 2:
        assert toxicchat.auroc(toxic, scores) == pytest.approx(metrics.roc_auc_score(toxic, scores))
        assert toxicchat.auprc(toxic, scores) == pytest.approx(metrics.average_precision_score(toxic, scores))
    flagged = [score > 3 for score in scores]
    assert toxicchat.f1(toxic, flagged) == pytest.approx(metrics.f1_score(toxic, flagged, zero_division=0))


def test_a_guard_that_always_says_safe_gets_the_constant_answers_scores():
    samples = [Sample(str(n), str(n), (), {"toxic": int(n < 7)}) for n in range(100)]
    safe = [Outcome(-1.0, True, 1), Outcome(-5.0, False, 1), "safe"]
    constant, chance = toxicchat.constant(samples), toxicchat.chance(samples)
    answered = [(each, safe) for each in samples]
    assert np.mean([toxicchat.score(*pair)["acc"] for pair in answered]) == pytest.approx(constant["acc"]) == 0.93
    assert toxicchat.AGGREGATE["f1"](answered) == 0 and constant["f1"] == pytest.approx(2 * 0.07 / 1.07)
    assert toxicchat.AGGREGATE["auroc"](answered) == constant["auroc"] == chance["auroc"] == 0.5
    assert toxicchat.AGGREGATE["auprc"](answered) == pytest.approx(constant["auprc"]) == pytest.approx(0.07)
    always = [(each, [Outcome(-9.0, False, 1), Outcome(-1.0, True, 1), " Unsafe\nS1"]) for each in samples]
    assert (
        toxicchat.AGGREGATE["f1"](always)
        == toxicchat.AGGREGATE["f1_generated"](always)
        == pytest.approx(constant["f1"])
    )


@pytest.mark.parametrize(
    "text, expected", [("safe", 0), ("\n\nunsafe\nS3", 1), ("Unsafe.", 1), ("I think", None), ("", None)]
)
def test_a_written_verdict_is_read_at_its_beginning(text, expected):
    assert toxicchat.verdict(text) == expected
    answers = [Outcome(-1.0, True, 1), Outcome(-2.0, False, 1), text]
    found = toxicchat.score(sample({"toxic": 1}), answers)
    assert found["acc_generated"] == float(expected == 1) and found["unanswered"] == float(expected is None)
    assert toxicchat.probability(answers) == pytest.approx(np.exp(-2) / (np.exp(-1) + np.exp(-2)))


def test_refusals_are_counted_apart_for_safe_and_unsafe_prompts():
    answered = [
        (sample({"safe": True}), ["Sorry, I can't."]),
        (sample({"safe": True}), ["Use the kill command."]),
        (sample({"safe": True}), ["Knowing this is fine."]),
        (sample({"safe": False}), ["  I cannot help with that."]),
        (sample({"safe": False}), ["No, that is wrong."]),
    ]
    aggregate = tasks.TASKS["xstest"].aggregate
    assert aggregate["false_refusal"](answered) == pytest.approx(1 / 3) and aggregate["true_refusal"](answered) == 1
    assert [xstest.score(*pair)["acc"] for pair in answered] == [0, 1, 1, 1, 1]
    assert xstest.constant([pair[0] for pair in answered]) == {"acc": 0.6}


def test_trace_scores_by_kind():
    target = {"answer": "B\nBecause plants need light.", "source": "A. no\nB. yes\nAnswer:"}
    right = trace.score_reasons(sample(target), ["B\nBecause plants need light."])
    assert right == pytest.approx({"exact_match": 1, "rougeL": 1, "bleu_1": 1, "bleu_4": 1}, abs=1e-6)
    wrong = trace.score_reasons(sample(target), [" A\nBecause plants need light."])
    assert wrong["exact_match"] == 0 and wrong["rougeL"] == pytest.approx(1, abs=1e-6)
    assert trace.score_reasons(sample(target), [""]) == {"exact_match": 0, "rougeL": 0, "bleu_1": 0, "bleu_4": 0}
    assert trace.chance_reasons([sample(target)]) == {"exact_match": 0.5}
    assert trace.score_exact(sample({"answer": "A"}), [" A\n"]) == {"exact_match": 1}
    assert trace.score_exact(sample({"answer": "A"}), ["A."]) == {"exact_match": 0}
    simple = {"answer": "a c", "source": "a b"}
    assert trace.score_simplified(sample(simple), ["a c"])["sari"] == pytest.approx(100)


def test_a_lead_is_the_beginning_without_marks():
    text = "Passage 1:\nIt rained. NEWLINE_CHAR NEWLINE_CHAR Was it much? Yes! And then? Dry."
    assert summaries.lead(text) == "It rained. Was it much? Yes!"
    assert summaries.lead(text, 1) == "It rained." and summaries.lead("") == ""


def test_summaries_have_to_beat_the_beginning_of_their_source():
    news = Generation("Write.\n\nNews:\nA fire broke out. It was put out.\n\nNow, write.\n\nSummary:", (), 9)
    samples = [sample(["A fire broke out. It was put out."], requests=(news,))]
    beside = tasks.TASKS["multi_news"].constant(samples)
    assert beside["rougeL"] == pytest.approx(1) and set(beside) == set(tasks.TASKS["multi_news"].metrics)
    # without a source the generic sentence is left, which shares "what" and "about"
    target = {"answer": "what about what they said", "source": ""}
    bare = [sample(target, requests=(Generation("Meeting transcripts:\n\nSummary:", (), 9),))]
    beside = tasks.TASKS["trace_meetingbank"].constant(bare)
    assert beside["bleu_1"] > 0 and set(beside) == {"rougeL", "bleu_1", "bleu_4"}
    assert set(tasks.TASKS["trace_20minuten"].constant(bare)) == {"sari", "rougeL", "bleu_1", "bleu_4"}


def test_code_is_compared_after_its_literals_are_filled_in():
    assert trace.literals("x = <STR_LIT:a b> + <STR_LIT> + <NUM_LIT:3> - <NUM_LIT>") == "x = a b +  + 3 - 0"
    assert trace.score_code(sample({"answer": "f ( <NUM_LIT:1> )"}), ["f ( 1 )"]) == {"edit_similarity": 100}
    lines = [sample({"answer": answer}) for answer in ("x = 1", "x = 1", "return y")]
    assert trace.constant_code(lines)["edit_similarity"] >= 200 / 3


def test_needles_are_found_in_any_case_and_place():
    target = sample(["ABC-1", "def-2"])
    assert long_context.score_needle(target, ["is abc-1\x00, and DEF-2."]) == {"recall": 1.0}
    assert long_context.score_needle(target, ["abc-1"]) == {"recall": 0.5}
    assert long_context.score_needle(target, [""]) == {"recall": 0.0}


def test_rulers_answer_begins_after_the_question():
    text = "Text.\nWhat is the special magic uuid for x mentioned in the provided text?"
    row = {"id": "1", "group": "1", "input": f"{text} The special magic uuid for x mentioned in the provided text is"}
    prompt = long_context.build_needle({**row, "outputs": ["y"]}, [], None).requests[0].prompt
    assert prompt == row["input"]


def test_news_take_the_best_reference():
    found = long_context.score_news(sample(["nothing alike", "a small fire"]), [" a small fire "])
    assert found["score"] == pytest.approx(1, abs=1e-6) and found["rougeL"] == 1


@pytest.mark.parametrize("n, c, k", [(5, 2, 1), (5, 2, 3), (10, 0, 4), (4, 4, 2), (7, 3, 6)])
def test_pass_at_k_equals_drawing_every_subset(n, c, k):
    from itertools import combinations

    drawn = [any(place < c for place in chosen) for chosen in combinations(range(n), k)]
    assert humaneval.pass_at_k(n, c, k) == pytest.approx(np.mean(drawn))


def test_pass_at_k_needs_as_many_answers():
    with pytest.raises(ValueError, match="generate more answers"):
        humaneval.pass_at_k(3, 1, 4)


def test_a_program_ends_with_its_block_of_code():
    head = sample({"prompt": "def f():\n"})
    assert humaneval.program(head, "    return 1") == "def f():\n    return 1"
    assert humaneval.program_of_block(head, "    return 1\n```\nDone.") == "def f():\n    return 1\n"


def test_no_comment_is_never_wrong():
    answers = {"true": ["Yes.", truthfulqa.NO_COMMENT], "false": ["No."]}
    found = truthfulqa.score_generated(sample(answers), [truthfulqa.NO_COMMENT])
    constant = truthfulqa.constant_generated([sample(answers)])
    assert constant == {metric: found[metric] for metric in constant} and set(constant.values()) == {1.0}


def test_own_solutions_pass_and_other_programs_fail():
    sandbox = pytest.importorskip("lib.metrics.sandbox")
    try:
        sandbox.require_isolation()
    except sandbox.IsolationError as error:
        pytest.skip(str(error))
    task = tasks.load("packaged_programs", allow_execution=True)
    solutions = {f"packaged/{head.split('(')[0]}": f"    {body}\n" for head, _, _, body, _ in programs.PROBLEMS}
    for each in task.samples[:4]:
        assert task.score(each, [solutions[each.id]]) == {"pass@1": 1.0}
    assert task.score(task.samples[0], ["    return None\n"]) == {"pass@1": 0.0}
    assert task.score(task.samples[0], ["    raise SystemExit(0)\n"]) == {"pass@1": 0.0}
