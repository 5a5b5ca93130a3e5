"""text-generation-inference's routes: answers against the model's own, rules and errors in the original's words."""

import pytest
import torch

from lib.decoding.sampling import Sampling
from tests import served

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def server():
    with served.running(served.artifact()) as client:
        yield client


def ids(text):
    return served.weights().tokenizer(text).input_ids


def greedy(text, count, **how):
    (found,) = served.runtime.generate(served.weights(), [ids(text)], new_tokens=count, **how)
    return found


def test_an_answer_is_the_model_s_own(server):
    wanted = greedy(PROMPT, 12)
    found = server.generate(PROMPT, max_new_tokens=12, details=True, decoder_input_details=True, top_n_tokens=3)
    assert found.status_code == 200
    details = found.json()["details"]
    assert found.json()["generated_text"] == wanted.text
    assert [token["id"] for token in details["tokens"]] == wanted.token_ids
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 12, None)
    rows = served.logits(ids(PROMPT), wanted.token_ids).log_softmax(-1)
    own = rows[range(12), wanted.token_ids]
    assert [token["logprob"] for token in details["tokens"]] == pytest.approx(own.tolist(), abs=1e-5)
    assert [[one["id"] for one in each] for each in details["top_tokens"]] == rows.topk(3).indices.tolist()
    assert [token["id"] for token in details["prefill"]] == ids(PROMPT) and details["prefill"][0]["logprob"] is None
    before = served.logits(ids(PROMPT)[:1], ids(PROMPT)[1:]).log_softmax(-1)
    own = before[range(len(before)), ids(PROMPT)[1:]].tolist()
    assert [token["logprob"] for token in details["prefill"][1:]] == pytest.approx(own, abs=1e-5)
    assert "".join(token["text"] for token in details["tokens"] if not token["special"]) == wanted.text
    for name in ("x-compute-time", "x-total-time", "x-validation-time", "x-queue-time", "x-inference-time",
                 "x-time-per-token"):  # fmt: skip
        assert found.headers[name].isdigit()
    assert found.headers["x-prompt-tokens"] == str(len(ids(PROMPT))) and found.headers["x-generated-tokens"] == "12"
    assert found.headers["x-compute-characters"] == "19" and found.headers["x-compute-type"] == "cpu+packed"


def test_a_stream_has_the_same_tokens_and_ends_with_the_text(server):
    whole = server.generate(PROMPT, max_new_tokens=9, details=True).json()
    found = server.generate(PROMPT, "/generate_stream", max_new_tokens=9, top_n_tokens=1)
    assert found.headers["content-type"].startswith("text/event-stream")
    assert found.headers["x-accel-buffering"] == "no"
    told = served.events(found)
    assert [each["token"] for each in told] == whole["details"]["tokens"]
    assert [each["index"] for each in told] == [*range(1, 10)]
    assert all(each["generated_text"] is None and each["details"] is None for each in told[:-1])
    assert told[-1]["generated_text"] == whole["generated_text"]
    assert told[-1]["details"] == {
        "finish_reason": "length", "generated_tokens": 9, "seed": None, "input_length": len(ids(PROMPT)),
    }  # fmt: skip
    assert all(each["top_tokens"][0]["id"] == each["token"]["id"] for each in told)


def test_the_root_answers_a_list_or_a_stream(server):
    asked = {"inputs": PROMPT, "parameters": {"max_new_tokens": 4}}
    (found,) = server.post("/", json=asked).json()
    assert found == {"generated_text": greedy(PROMPT, 4).text}
    assert (
        served.events(server.post("/", json=asked | {"stream": True}))[-1]["generated_text"] == greedy(PROMPT, 4).text
    )


def test_a_stop_string_ends_the_answer_and_stays_in_it(server):
    text = greedy(PROMPT, 12).text
    stop = text[5:7]
    found = server.generate(PROMPT, max_new_tokens=12, stop=[stop], details=True).json()
    assert found["generated_text"] == text[: text.index(stop) + 2]
    assert found["details"]["finish_reason"] == "stop_sequence"
    full = server.generate(PROMPT, max_new_tokens=12, stop=[stop], return_full_text=True).json()
    assert full["generated_text"] == PROMPT + found["generated_text"]


@pytest.mark.parametrize(
    "given",
    [
        {"do_sample": True},
        {"temperature": 0.7},
        {"top_k": 20},
        {"top_p": 0.8, "temperature": 1.5},
        {"typical_p": 0.9},
        {"do_sample": False, "temperature": 0.8, "top_p": 0.95, "typical_p": 0.95},
        {"repetition_penalty": 1.3, "do_sample": True},
    ],
)
def test_a_seed_draws_what_transformers_processors_draw(server, given):
    found = server.generate(PROMPT, max_new_tokens=8, seed=11, details=True, **given).json()["details"]
    how = {name: value for name, value in given.items() if name != "do_sample"}
    (wanted,) = served.runtime.generate(
        served.weights(), [ids(PROMPT)], new_tokens=8, sampling=Sampling(**({"temperature": 1.0} | how), seed=11)
    )
    assert [token["id"] for token in found["tokens"]] == wanted.token_ids and found["seed"] == 11


def test_penalties_apply_to_greedy_answers_too(server):
    plain = greedy(PROMPT, 16).token_ids
    found = server.generate(PROMPT, max_new_tokens=16, frequency_penalty=2.0, details=True).json()["details"]
    tokens, text = [token["id"] for token in found["tokens"]], ids(PROMPT)
    for place, row in enumerate(served.logits(text, tokens)):
        history = [*text, *tokens[:place]]
        counts = torch.bincount(torch.tensor(history), minlength=len(row)) / len(history)
        assert int((row - 2.0 * counts).argmax()) == tokens[place]
    other = server.generate(PROMPT, max_new_tokens=16, repetition_penalty=1.5, details=True).json()["details"]
    assert [token["id"] for token in other["tokens"]] != plain


def test_without_a_seed_one_is_drawn_and_told(server):
    first, second = (
        server.generate(PROMPT, max_new_tokens=6, do_sample=True, details=True).json()["details"] for _ in range(2)
    )
    assert first["seed"] != second["seed"]
    again = server.generate(PROMPT, max_new_tokens=6, do_sample=True, details=True, seed=first["seed"]).json()
    assert again["details"]["tokens"] == first["tokens"]


def test_the_best_of_several_is_the_likeliest(server):
    found = server.generate(PROMPT, max_new_tokens=6, do_sample=True, best_of=4, details=True).json()["details"]
    answers = [found, *found["best_of_sequences"]]
    means = [sum(token["logprob"] for token in each["tokens"]) / len(each["tokens"]) for each in answers]
    assert len(answers) == 4 and means == sorted(means, reverse=True)
    assert len({each["seed"] for each in answers}) == 4


def test_truncate_keeps_the_end_of_the_inputs(server):
    found = server.generate(PROMPT, max_new_tokens=5, truncate=7, details=True, decoder_input_details=True).json()
    assert [token["id"] for token in found["details"]["prefill"]] == ids(PROMPT)[-7:]


WRONG = [
    ({"best_of": 0}, "`best_of` must be >= 1. Given: 0"),
    ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
    ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
    ({"best_of": 99, "do_sample": True}, "`best_of` must be > 0 and <= 16. Given: 99"),
    ({"temperature": 0}, "`temperature` must be strictly positive"),
    ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 3}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 0}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"top_n_tokens": 21}, "`top_n_tokens` must be >= 0 and <= 20. Given: 21"),
    ({"truncate": 0}, "`truncate` must be strictly positive"),
    ({"truncate": 10**6}, "`truncate` must be strictly positive and less than 511. Given: 1000000"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"max_new_tokens": 500}, "`inputs` tokens + `max_new_tokens` must be <= 512. Given: 19 `inputs` tokens and 500"),
    ({"stop": ["a"] * 5}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"stop": [""]}, "`stop` holds a string of 0 characters"),
    ({"stop": "a"}, "`stop` is 'a'; a list of strings is needed"),
    ({"seed": -1}, "`seed` must be >= 0"),
    ({"seed": "1"}, "`seed` is '1'; a whole number is needed"),
    ({"do_sample": 1}, "`do_sample` is 1; true or false is needed"),
    ({"watermark": True}, "`watermark` is not supported: no watermark is put into texts"),
    ({"grammar": {"type": "json"}}, "`grammar` is not supported: texts are not held to a grammar"),
    ({"tempature": 0.5}, "`tempature` is no parameter of `parameters`; did you mean `temperature`?"),
]


@pytest.mark.parametrize("given,said", WRONG)
def test_what_breaks_a_rule_is_named(server, given, said):
    found = server.generate(PROMPT, **given)
    assert found.status_code == 422 and found.json()["error_type"] == "validation"
    assert found.json()["error"].startswith(f"Input validation error: {said}")


@pytest.mark.parametrize(
    "given,said",
    [
        ({"best_of": 2, "do_sample": True}, "`best_of` != 1"),
        ({"decoder_input_details": True}, "`decoder_input_details`"),
    ],
)
def test_what_a_stream_cannot_have_is_refused_before_it_begins(server, given, said):
    found = server.generate(PROMPT, "/generate_stream", **given)
    assert found.status_code == 422 and said in found.json()["error"]


def test_harmless_words_of_clients_are_accepted(server):
    found = server.generate(
        PROMPT, max_new_tokens=2, watermark=False, grammar=None, adapter_id=None, seed=None, stop=[]
    )
    assert found.status_code == 200


@pytest.mark.parametrize(
    "body,status",
    [
        ({"inputs": ""}, 422), ({}, 422), ({"inputs": 3}, 422), ([], 422), ({"inputs": "\ud83d"}, 422),
        ({"inputs": "a", "extra": 1}, 422), ({"inputs": "a" * 600}, 422), ({"inputs": "a", "parameters": []}, 422),
    ],
)  # fmt: skip
def test_bodies_that_ask_for_nothing_are_refused(server, body, status):
    import json

    found = server.post("/generate", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert found.status_code == status and found.json()["error_type"] == "validation"


def test_info_health_and_tokens(server):
    info = server.get("/info").json()
    assert (info["model_id"], info["max_total_tokens"], info["max_input_tokens"]) == ("tiny", 512, 511)
    assert [server.get(path).status_code for path in ("/health", "/ping", "/")] == [200] * 3
    found = server.post("/tokenize", json={"inputs": "a fox"}).json()
    assert [token["id"] for token in found] == ids("a fox")
    assert "".join("a fox"[token["start"] : token["stop"]] for token in found) == "a fox"


def test_metrics_have_the_original_s_names_and_no_text(server):
    server.generate("secret words", max_new_tokens=3)
    server.generate("secret words", max_new_tokens=0)
    found = server.get("/metrics").text
    for name in ("tgi_request_count", 'tgi_request_failure{err="validation"}', "tgi_request_success", "tgi_queue_size",
                 "tgi_request_duration_bucket", "tgi_request_generated_tokens_sum", "tgi_batch_current_size",
                 "tgi_request_input_length_count", "tgi_batch_inference_count"):  # fmt: skip
        assert f"\n{name}" in found
    assert "secret" not in found


def test_a_browser_gets_the_page(server):
    found = server.get("/", headers={"Accept": "text/html"})
    assert (
        found.headers["content-type"].startswith("text/html") and "'self'" in found.headers["content-security-policy"]
    )
