"""Answers on disk: whole lines only, one writer a part, and another evaluation in another folder."""

import dataclasses

import pytest

from lib.evaluation.cache import Store, task_hash
from lib.tasks.task import Generation, Likelihood, Outcome, Sample
from tests import questions

KEY = {"model": "m", "task": "t", "settings": "greedy"}
ANSWERS = {
    "a": [Outcome(-1.234567890123456, True, 3), Outcome(-1e-30, False, 1)],
    "b/é": ["text\nwith lines \u2028 and é", ""],
}


def filled(folder, part="0"):
    with Store(KEY, folder=folder, part=part) as store:
        for sample, answers in ANSWERS.items():
            store.append(sample, answers)
    return store


def test_what_was_written_is_read(tmp_path):
    store = filled(tmp_path)
    assert Store(KEY, folder=tmp_path, part="1").load() == ANSWERS
    assert Store({**KEY, "model": "other"}, folder=tmp_path).load() == {}
    assert len(store.path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("lost", [1, 7, 40])
def test_a_torn_last_line_is_dropped_and_written_anew(tmp_path, lost):
    path = filled(tmp_path).path
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    with Store(KEY, folder=tmp_path) as store:
        assert store.load() == {"a": ANSWERS["a"]}
        store.append("b/é", ANSWERS["b/é"])
    assert path.read_bytes() == whole


def test_damage_in_the_middle_is_named(tmp_path):
    path = filled(tmp_path).path
    path.write_bytes(b"{torn\n" + path.read_bytes())
    with pytest.raises(ValueError, match=r"part-0.jsonl, line 1 is no answer .* delete the file"):
        Store(KEY, folder=tmp_path).load()


def test_one_process_writes_a_part(tmp_path):
    with Store(KEY, folder=tmp_path) as store:
        store.append("a", ANSWERS["a"])
        with pytest.raises(BlockingIOError, match="another process evaluates"):
            Store(KEY, folder=tmp_path).append("a", ANSWERS["a"])
        with Store(KEY, folder=tmp_path, part="1") as other:
            other.append("b/é", ANSWERS["b/é"])
        assert store.load() == ANSWERS
    filled(tmp_path)  # the lock is gone


def test_the_task_hash_knows_every_part_of_a_request():
    samples = questions.task(questions.likelihoods(2)).samples
    changed = [
        dataclasses.replace(samples[0], id="other"),
        dataclasses.replace(samples[0], requests=samples[0].requests[:3]),
        dataclasses.replace(samples[0], requests=(Likelihood("c", " x"), *samples[0].requests[1:])),
    ]
    hashes = {task_hash("t", [each, samples[1]]) for each in [samples[0], *changed]}
    assert len(hashes) == 4
    assert task_hash("other", samples) != task_hash("t", samples) == task_hash("t", list(samples))
    texts = [Sample("s", "g", (Generation("p", until, most),), 0) for until, most in ((("a",), 3), ((), 3), ((), 4))]
    assert len({task_hash("t", [each]) for each in texts}) == 3
