"""What an evaluation was made under: recorded, compared, and refused where it makes no sense."""

from dataclasses import replace

import pytest

from lib.evaluation import comparison, run
from lib.evaluation.endpoint import Endpoint
from lib.evaluation.local import Local
from lib.metrics import guards
from lib.tasks.task import Generation, Likelihood, Sample, Task
from tests import questions, tiny
from tests.test_endpoint import Served, server

DRAWN = {"temperature": 0.8, "top_p": 0.95}
CHAT = "chat template of the server"


def written(count=4, **data):
    return questions.task(questions.generations(count), data={"sha256": "d", **data})


def many(repeats=3):
    """A task that asks every prompt several times, as pass@k does."""
    task = written(4, repeats=repeats)
    return replace(task, samples=[replace(sample, requests=sample.requests * repeats) for sample in task.samples])


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"sampling": DRAWN}, r"settings of 'a' is 'greedy', that of 'b' is '.*0\.8"),
        ({"sampling": {"repetition_penalty": 1.3}}, r"that of 'b' is '.*repetition_penalty.*1\.3"),
    ],
)
def test_systems_that_choose_tokens_otherwise_stop(other, what):
    model, task = tiny.llama(), written()
    one, two = (run.evaluate(Local(model, **how), task, cache=False) for how in ({}, other))
    with pytest.raises(ValueError, match=what):
        comparison.against({"a": one, "b": two})
    same = run.evaluate(Local(model, sampling={"temperature": 0.0}, seed=3), task, cache=False)
    guards.same_conditions({"a": one, "b": same})  # greedy by another name: no seed has a say


def test_systems_of_other_seeds_and_caps_stop():
    model, task = tiny.llama(), written()
    one, two = (run.evaluate(Local(model, sampling=DRAWN, seed=seed), task, cache=False) for seed in (0, 1))
    with pytest.raises(ValueError, match=r"settings of 'a' is '.*\"seed\": 0.*'b' is '.*\"seed\": 1"):
        guards.same_conditions({"a": one, "b": two})
    short = run.evaluate(Local(model, sampling=DRAWN), run.capped(task, 2), cache=False)
    with pytest.raises(ValueError, match="new_tokens of 'a' is None, that of 'b' is 2"):
        guards.same_conditions({"a": one, "b": short})


def test_a_servers_chat_is_recorded_and_stops_a_comparison():
    served, task = Served(), written()
    with server(served) as (url, _):
        plain, chat = (run.evaluate(Endpoint(url, "tiny", chat=chat), task, cache=False) for chat in (False, True))
    assert plain.settings == "greedy" and chat.settings == f"greedy, {CHAT}"
    assert plain.settings == run.evaluate(served.model, task, cache=False).settings
    with pytest.raises(ValueError, match=f"settings of 'plain' is 'greedy', that of 'chat' is 'greedy, {CHAT}'"):
        guards.same_conditions({"plain": plain, "chat": chat})


@pytest.mark.parametrize("engine", ["model", "cold", "endpoint"])
def test_asking_a_greedy_engine_again_and_again_is_refused(engine):
    model = tiny.llama()
    asked = {
        "model": model,
        "cold": Local(model, sampling={"temperature": 0.0, "repetition_penalty": 1.2}),
        "endpoint": Endpoint("http://127.0.0.1:9", "m"),
    }
    with pytest.raises(ValueError, match=r"repeats=3 .*greedy.* sampling="):
        run.evaluate(asked[engine], many(), cache=False)


def test_a_local_engine_that_draws_may_be_asked_again():
    found = run.evaluate(Local(tiny.llama(), sampling=DRAWN), many(), cache=False)
    assert any(len(set(row.answers)) > 1 for row in found.rows) and '"temperature": 0.8' in found.settings


def test_an_endpoint_draws_with_a_seed_a_request(tmp_path):
    served = Served()

    def seeded(path, body):
        return 200, {"choices": [{"text": f"{body.get('seed')}"}]}, {}

    task = many()
    with server(seeded) as (url, asked):
        engines = [Endpoint(url, "m", sampling=DRAWN, seed=seed) for seed in (5, 50)]
        first, second, again = (run.evaluate(engine, task, cache=tmp_path) for engine in (*engines, engines[0]))
    assert [answer for row in first.rows for answer in row.answers] == [str(5 + place) for place in range(12)]
    assert [answer for row in second.rows for answer in row.answers] == [str(50 + place) for place in range(12)]
    assert (first.asked, second.asked, again.asked) == (4, 4, 0)
    assert all(body["temperature"] == 0.8 and body["top_p"] == 0.95 for _, body, _ in asked)
    with server(served) as (url, asked):
        Endpoint(url, "tiny").generate(questions.generations(2))
    assert all(body["temperature"] == 0 and "seed" not in body for _, body, _ in asked)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}])
def test_an_endpoint_refuses_wrong_settings_before_anything_is_asked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Endpoint("http://127.0.0.1:9", "m", sampling=wrong)


def test_a_templated_task_does_not_go_through_a_second_template():
    engine = Endpoint("http://127.0.0.1:9", "m", chat=True)
    with pytest.raises(ValueError, match=r"chat=True .*template.* twice.*chat=False"):
        run.evaluate(engine, written(chat="0123456789abcdef"), cache=False)


def test_cut_prompts_are_counted_by_sample():
    """Four choices and a text of one long prompt are one cut prompt; two likelihoods that fit are none."""
    model = tiny.llama(max_position_embeddings=64)
    long, short = "long " * 20, "short "
    samples = [
        Sample("a", "a", (*(Likelihood(long, f" {letter}") for letter in "ABCD"), Generation(long, (), 3)), 0),
        Sample("b", "b", tuple(Likelihood(short, f" {letter}") for letter in "AB"), 0),
        Sample("c", "c", (Likelihood(short, " A"), Likelihood(long, " B"), Likelihood(long, " C")), 0),
    ]
    task = Task("t", samples, ("n",), {}, {}, {}, lambda sample, answers: {"n": float(len(answers))})
    found = run.evaluate(model, task, cache=False)
    assert found.truncated == 2
    assert next(mark for mark in guards.marks(found) if "left end" in mark).startswith("2 samples lost the left end")


def test_half_a_character_in_a_request_is_refused_before_anything_runs(tmp_path):
    task = questions.task([Generation("fine", (), 3), Generation("cut \ud83d", (), 3)])
    with pytest.raises(ValueError, match=r"sample 's1' of tiny holds half a character, '\\ud83d', at place 4"):
        run.evaluate(tiny.llama(), task, cache=tmp_path)
    named = replace(questions.task([Generation("fine", (), 3)]), name="t\ud83d")
    with pytest.raises(ValueError, match="the task's name holds half a character"):
        run.evaluate(tiny.llama(), named, cache=tmp_path)
    assert not list(tmp_path.iterdir())
