"""Pages for groups of tasks: the newest score of each, beside what costs nothing."""

import pandas as pd
import pytest

from lib import files, tasks
from lib.report import chapters, selection, site, task_pages
from tests import report_data


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    monkeypatch.setattr(selection, "promised", list)
    return tmp_path


def score(task, value, low, *, run="a", time="2026-01-01T00:00:00", chance=0.25, constant=0.3, **more):
    row = report_data.base(run, "51_evaluate", model="some/tiny", time=time)
    beside = {"measured": "acc", "low": low, "high": 2 * value - low, "chance": chance, "constant": constant}
    return (
        row
        | {"metric": "score", "task": task, "value": value, "stderr": 0.02, "n": 100, "unit": "share"}
        | beside
        | more
    )


def test_every_task_has_a_group():
    assert {tasks.group(name) for name in tasks.TASKS} == set(tasks.GROUPS)
    assert tasks.group("mmlu_anatomy") == tasks.group("mmlu") == tasks.group("arc_easy") == "multiple choice"
    assert tasks.group("humaneval") == "code"
    with pytest.raises(ValueError, match="unknown"):
        tasks.group("mlmu")


def test_the_newest_of_each_and_what_it_shows():
    table = pd.DataFrame([
        score("arc_easy", 0.4, 0.36),
        score("arc_easy", 0.5, 0.46, run="b", time="2026-01-02T00:00:00"),
        score("arc_easy", 0.45, 0.40, run="c", n=50),
        score("hellaswag", 0.29, 0.25),
        score("gone_task", 0.9, 0.8),
        score("humaneval", 0.1, 0.05, chance=None, constant=None),
    ])  # fmt: skip
    shown = task_pages.readable(task_pages.scores(table, "multiple choice"))
    assert list(zip(shown["Task"], shown["n"], shown["Score"], shown["Skill"])) == [
        ("arc_easy", "50", "0.450 ± 0.020", "shown"),
        ("arc_easy", "100", "0.500 ± 0.020", "shown"),
        ("hellaswag", "100", "0.290 ± 0.020", "not shown"),
    ]
    code = task_pages.readable(task_pages.scores(table, "code"))
    assert code["Chance"].tolist() == [""] and code["Skill"].tolist() == ["no baseline"]


def test_scores_of_a_benchmark_are_named_by_its_configuration():
    how = {"method": "gptq", "bits": 4.0, "group_size": 64, "blocks": 0.0, "engine": "packed"}
    table = pd.DataFrame([score("arc_easy", 0.4, 0.36, **how), score("arc_easy", 0.5, 0.46)])
    assert set(task_pages.scores(table, "multiple choice")["of"]) == {"tiny", "GPTQ 4 bits, packed"}


def test_pages_are_linked_and_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(chapters, "FIGURES", {site.LEADING: chapters.FIGURES[site.LEADING]})
    table = pd.DataFrame([score("arc_easy", 0.4, 0.36), score("arc_easy", 0.3, 0.2, run="b", model="<i>other</i>")])
    monkeypatch.setattr(site.results, "table", lambda: selection.complete(table))
    site.build()
    page = (files.report() / "chapter-50.html").read_text()
    assert "href='tasks-multiple-choice.html'>multiple choice</a>: 2 scores" in page
    assert "safety: not measured yet" in page
    own = (files.report() / "tasks-multiple-choice.html").read_text()
    assert "0.400 ± 0.020" in own and (files.report() / "files" / "tasks-multiple-choice.svg").is_file()
    assert "<i>" not in own


def test_no_scores_make_no_pages():
    found = task_pages.build(
        pd.DataFrame(columns=["metric", "task", "status", "time"]), files.report(), chapters.of("51_")
    )
    assert not any(each["file"] for each in found) and not list(files.report().glob("tasks-*.html"))
