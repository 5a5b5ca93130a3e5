"""OpenAI's routes: texts, log-probabilities of prompts and answers, streams, and refusals in its words."""

import pytest
import torch

from lib.decoding.sampling import Sampling
from tests import served

PROMPT = "The quick brown fox"
CHAT = [{"role": "user", "content": "What is it?"}]


@pytest.fixture(scope="module")
def server():
    with served.running(served.artifact(), served.artifact("other", seed=1)) as client:
        yield client


def ids(text):
    return served.weights().tokenizer(text).input_ids


def greedy(prompt, count, seed=0):
    (found,) = served.runtime.generate(served.weights(seed), [prompt], new_tokens=count)
    return found


def complete(server, path="completions", **given):
    return server.post(f"/v1/{path}", json=given)


def test_models_are_listed_and_chosen_by_name(server):
    assert [each["id"] for each in server.get("/v1/models").json()["data"]] == ["tiny", "other"]
    assert server.get("/v1/models/other").json()["id"] == "other"
    for name, seed in ((None, 0), ("tgi", 0), ("tiny", 0), ("other", 1)):
        found = complete(server, model=name, prompt=PROMPT, temperature=0, max_tokens=8).json()
        assert found["choices"][0]["text"] == greedy(ids(PROMPT), 8, seed).text
    found = complete(server, model="tini", prompt=PROMPT)
    assert found.status_code == 404 and "did you mean `tiny`?" in found.json()["error"]["message"]
    assert found.json()["error"]["code"] == "model_not_found"


def test_echo_gives_the_prompt_s_log_probabilities(server):
    found = complete(server, prompt=PROMPT, temperature=0, max_tokens=1, echo=True, logprobs=2).json()
    (choice,) = found["choices"]
    answer = greedy(ids(PROMPT), 1).token_ids
    told, whole = choice["logprobs"], [*ids(PROMPT), *answer]
    rows = served.logits(whole[:1], whole[1:]).log_softmax(-1)
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    own = rows[range(len(rows)), whole[1:]].tolist()
    assert told["token_logprobs"][1:] == pytest.approx(own, abs=1e-5)
    for row, top in zip(rows, told["top_logprobs"][1:]):
        assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-5)
    assert "".join(told["tokens"][:-1]) == PROMPT and choice["text"].startswith(PROMPT)
    assert told["text_offset"][: len(PROMPT)] == [*range(len(PROMPT))]
    assert found["usage"] == {"prompt_tokens": 19, "completion_tokens": 1, "total_tokens": 20}
    shown = complete(server, prompt=PROMPT, temperature=0, max_tokens=0, echo=True, logprobs=0).json()["choices"][0]
    assert shown["text"] == PROMPT and shown["logprobs"]["token_logprobs"] == told["token_logprobs"][:-1]


def test_several_prompts_as_texts_or_ids(server):
    prompts = [PROMPT, "Another one"]
    texts = complete(server, prompt=prompts, temperature=0, max_tokens=5).json()["choices"]
    tokens = complete(server, prompt=[ids(each) for each in prompts], temperature=0, max_tokens=5).json()["choices"]
    assert [each["text"] for each in texts] == [greedy(ids(each), 5).text for each in prompts]
    assert [each["text"] for each in tokens] == [each["text"] for each in texts]
    assert [each["index"] for each in texts] == [0, 1]
    assert complete(server, prompt=ids(PROMPT), temperature=0, max_tokens=5).json()["choices"][0] == texts[0]


def test_n_answers_have_seeds_of_their_own(server):
    found = complete(server, prompt=PROMPT, n=3, seed=5, max_tokens=6, temperature=0.9, top_p=0.9).json()
    wanted = [
        served.runtime.generate(
            served.weights(), [ids(PROMPT)], new_tokens=6, sampling=Sampling(0.9, top_p=0.9, seed=5 + place)
        )[0].text
        for place in range(3)
    ]
    assert [each["text"] for each in found["choices"]] == wanted
    assert found["usage"]["prompt_tokens"] == 19
    best = complete(server, prompt=PROMPT, n=1, best_of=3, seed=5, max_tokens=6, temperature=0.9, top_p=0.9).json()
    assert best["choices"][0]["text"] in wanted and len(best["choices"]) == 1


def test_a_stream_joins_to_the_text_and_ends_with_the_usage(server):
    whole = complete(server, prompt=PROMPT, temperature=0, max_tokens=12, logprobs=1, stop=["zz"]).json()
    found = complete(
        server, prompt=PROMPT, temperature=0, max_tokens=12, logprobs=1, stop=["zz"], stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *chunks, usage, end = served.events(found)
    assert end == "[DONE]" and usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert all(each["usage"] is None for each in chunks)
    assert "".join(each["choices"][0]["text"] for each in chunks) == whole["choices"][0]["text"]
    told = [value for each in chunks for value in each["choices"][0]["logprobs"]["token_logprobs"]]
    assert told == whole["choices"][0]["logprobs"]["token_logprobs"]
    assert [each["choices"][0]["finish_reason"] for each in chunks][-1] == "length"


def test_what_meters_of_load_ask_for(server):
    """The usage so far in each chunk, and answers of the length that was asked for, whatever the model would say."""
    forced = {"prompt": "ab", "max_tokens": 5, "temperature": 0, "logit_bias": {"0": 100}}  # the tiny model's end
    assert complete(server, **forced).json()["choices"][0]["finish_reason"] == "stop"
    whole = complete(server, **forced, ignore_eos=True).json()
    assert whole["choices"][0]["finish_reason"] == "length" and whole["usage"]["completion_tokens"] == 5
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path, body in (("completions", {"prompt": "ab"}), ("chat/completions", {"messages": CHAT})):
        body |= {"max_tokens": 5, "temperature": 0, "ignore_eos": True, "stream": True, "stream_options": options}
        *chunks, last, _ = served.events(server.post(f"/v1/{path}", json=body))
        counts = [each["usage"]["completion_tokens"] for each in chunks]
        assert counts == sorted(counts) and counts[-1] == last["usage"]["completion_tokens"] == 5
        assert len(set(counts)) > 1 and len({each["usage"]["prompt_tokens"] for each in [*chunks, last]}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_text_ends_before_a_stop_string_streamed_or_not(server, stream):
    text = greedy(ids(PROMPT), 16).text
    stop = text[6:9]
    found = complete(server, prompt=PROMPT, temperature=0, max_tokens=16, stop=stop, stream=stream)
    choices = [each["choices"][0] for each in served.events(found)[:-1]] if stream else found.json()["choices"]
    assert "".join(each["text"] for each in choices) == text[: text.index(stop)]
    assert choices[-1]["finish_reason"] == "stop"


def test_a_chat_goes_through_the_model_s_template(server):
    tokenizer = served.weights().tokenizer
    prompt = ids(tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False))
    wanted = greedy(prompt, 10)
    found = complete(
        server, "chat/completions", messages=CHAT, temperature=0, max_tokens=10, logprobs=True, top_logprobs=2
    ).json()
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": wanted.text}
    rows = served.logits(prompt, wanted.token_ids).log_softmax(-1)
    told = choice["logprobs"]["content"]
    own = rows[range(10), wanted.token_ids].tolist()
    assert [each["logprob"] for each in told] == pytest.approx(own, abs=1e-5)
    assert all(len(each["top_logprobs"]) == 2 for each in told) and isinstance(found["system_fingerprint"], str)
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]
    again = complete(server, "chat/completions", messages=parts, temperature=0, max_tokens=10).json()
    assert again["choices"][0]["message"]["content"] == wanted.text
    *chunks, end = served.events(
        complete(server, "chat/completions", messages=CHAT, temperature=0, max_tokens=10, stream=True)
    )
    deltas = [each["choices"][0]["delta"] for each in chunks]
    assert end == "[DONE]" and "".join(each["content"] for each in deltas) == wanted.text
    assert all("tool_calls" in each and each["role"] == "assistant" for each in deltas)
    assert all("logprobs" in each["choices"][0] for each in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_openai_s_penalties_and_biases(server):
    prompt, given = ids(PROMPT), {"frequency_penalty": 1.5, "presence_penalty": 0.5, "logit_bias": {"65": 3}}
    tokens = []
    for _ in range(16):
        row = served.logits(prompt, [*tokens, 0])[-1]
        counts = torch.bincount(torch.tensor(tokens, dtype=torch.long), minlength=len(row))
        row = row - 1.5 * counts - 0.5 * (counts > 0)
        row[65] += 3
        tokens.append(int(row.argmax()))
    found = complete(server, prompt=PROMPT, temperature=0, max_tokens=16, **given).json()["choices"][0]
    assert found["text"] == served.weights().tokenizer.decode(tokens) and tokens != greedy(prompt, 16).token_ids


WRONG = [
    ({"prompt": PROMPT, "tempature": 1}, "did you mean `temperature`?", "tempature"),
    ({"prompt": PROMPT, "temperature": 3}, "`temperature` must be >= 0 and <= 2", "temperature"),
    ({"prompt": PROMPT, "n": 0}, "`n` must be >= 1", "n"),
    ({"prompt": PROMPT, "n": 2**31}, "`n` must be at most 16. Given: 2147483648", "n"),
    ({"prompt": PROMPT, "best_of": 2**31}, "`best_of` must be at most 16. Given: 2147483648", "best_of"),
    ({"prompt": [PROMPT] * 2, "n": 9}, "18 answers were asked for; at most 16", "n"),
    ({"messages": CHAT, "n": 2**31}, "`n` must be at most 16", "n"),
    ({"prompt": PROMPT, "n": 2, "best_of": 1}, "`best_of` must be greater", "best_of"),
    ({"prompt": PROMPT, "stop": ""}, "string of 0 characters", "stop"),
    ({"prompt": PROMPT, "suffix": "x"}, "`suffix` is not supported", "suffix"),
    ({"prompt": PROMPT, "logit_bias": {"x": 1}}, "`logit_bias` gives 'x'", "logit_bias"),
    ({"prompt": PROMPT, "max_tokens": 600}, "maximum context length is 512", "max_tokens"),
    ({"prompt": PROMPT, "stream_options": {}}, "only allowed when `stream` is true", "stream_options"),
    ({"prompt": ""}, "the prompt has no tokens", "prompt"),
    ({"prompt": []}, "`prompt` must be", "prompt"),
    ({"prompt": [256]}, "token ids that the model lacks", "prompt"),
    ({"prompt": [[1], "a", 2]}, "`prompt` must be", "prompt"),
    ({"prompt": "a" * 600}, "The prompt has at least 600 tokens; at most 511", "prompt"),
    ({}, "`prompt` is missing", "prompt"),
    ({"messages": CHAT, "response_format": {"type": "json_object"}}, "`response_format` is not supported", None),
    ({"messages": CHAT, "tools": [{}]}, "`tools` is not supported", "tools"),
    ({"messages": CHAT, "top_logprobs": 2}, "only allowed when `logprobs` is true", "top_logprobs"),
    ({"messages": []}, "`messages` is empty", "messages"),
    ({"messages": [{"role": "user"}]}, "message 0 has no `content`", "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts that are no text", "messages"),
]


@pytest.mark.parametrize("given,said,param", WRONG)
def test_refusals_name_what_is_wrong(server, given, said, param):
    found = complete(server, "chat/completions" if "messages" in given else "completions", **given)
    error = found.json()["error"]
    assert found.status_code == 400 and error["type"] == "invalid_request_error"
    assert said in error["message"] and (param is None or error["param"] == param)


def test_words_of_clients_without_effect_are_accepted(server):
    found = complete(
        server, "chat/completions", messages=CHAT, max_tokens=2, tools=None, response_format={"type": "text"},
        user="me", tool_choice=None, tool_prompt="", logit_bias=None, metadata={},
    )  # fmt: skip
    assert found.status_code == 200


def test_the_description_of_the_interface_names_every_parameter(server):
    paths = server.get("/openapi.json").json()["paths"]
    body = paths["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"temperature", "typical_p", "best_of"} <= set(body["properties"]["parameters"]["properties"])
    assert (
        "messages"
        in paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]["required"]
    )
