"""The remote engine against a local server: one that runs the tiny model, and ones that fail in every way."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from lib.evaluation import endpoint, run
from lib.evaluation.endpoint import Endpoint, EndpointError
from lib.evaluation.local import Local
from lib.tasks.task import Generation, Likelihood
from tests import questions, tiny


@contextlib.contextmanager
def server(answer):
    """Serve `answer(path, body) -> (status, JSON-able, headers)`; yields (address, list of what was asked)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body, dict(self.headers)))
            status, content, headers = answer(self.path, body)
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}/v1", asked
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


class Served:
    """The tiny model behind OpenAI's interface; `knows` is the way in which it shows a prompt's log-probabilities."""

    def __init__(self, knows="echo"):
        self.model, self.knows, self.lock = tiny.llama(), knows, threading.Lock()

    def __call__(self, path, body):
        with self.lock:
            if path.endswith("chat/completions"):
                chat = self.model.tokenizer.apply_chat_template(
                    body["messages"], tokenize=False, add_generation_prompt=True
                )
                return 200, {"choices": [{"message": {"content": self.text(chat, body)}}]}, {}
            choice = {"text": self.text(body["prompt"], body)}
            if body.get("echo") and self.knows != "echo":
                return 400, {"error": "echo is not supported"}, {}
            if body.get("echo"):
                choice["logprobs"] = self.logprobs(body["prompt"])
            if "prompt_logprobs" in body and self.knows == "prompt_logprobs":
                choice["prompt_logprobs"] = self.prompt_logprobs(body["prompt"])
            return 200, {"choices": [choice]}, {}

    def text(self, prompt, body):
        request = Generation(prompt, tuple(body.get("stop", ())), body["max_tokens"])
        return questions.greedy(self.model, request)

    def values(self, prompt):
        ids = self.model.tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            return ids[0].tolist(), self.model(input_ids=ids).logits[0].double().log_softmax(-1)

    def logprobs(self, prompt):
        ids, found = self.values(prompt)
        before = [None] + [found[place, token].item() for place, token in enumerate(ids[1:])]
        tops = [None] + [{chr(row.argmax()): row.max().item()} for row in found[:-1]]
        last = found[-1].max().item()
        return {
            "tokens": [chr(token) for token in ids] + ["+"],
            "token_logprobs": [*before, last],
            "top_logprobs": [*tops, {"+": last}],
            "text_offset": list(range(len(ids) + 1)),
        }

    def prompt_logprobs(self, prompt):
        ids, found = self.values(prompt)
        entries = [None]
        for place, token in enumerate(ids[1:]):
            rank = int((found[place] > found[place, token]).sum()) + 1
            given = {"logprob": found[place, token].item(), "rank": rank, "decoded_token": chr(token)}
            best = int(found[place].argmax())
            entries.append({str(token): given} | ({} if rank == 1 else {str(best): {"logprob": 0.0, "rank": 1}}))
        return entries


@pytest.fixture
def waits(monkeypatch):
    """What the client waited for, instead of waiting."""
    seconds = []
    monkeypatch.setattr(endpoint, "sleep", seconds.append)
    return seconds


@pytest.mark.parametrize("knows", ["echo", "prompt_logprobs"])
def test_likelihoods_are_those_of_the_local_engine(knows):
    some = [*questions.likelihoods(4), Likelihood("spaces at the end ", "moved")]
    served = Served(knows)
    with server(served) as (url, asked):
        found = Endpoint(url, "tiny").loglikelihoods(some)
    for one, other in zip(found, Local(served.model).loglikelihoods(some)):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert (one.greedy, one.tokens) == (other.greedy, other.tokens)
    assert {body["model"] for _, body, _ in asked} == {"tiny"}
    assert sum("prompt_logprobs" in body for _, body, _ in asked) == (0 if knows == "echo" else len(some) + 1)


@pytest.mark.parametrize("chat", [False, True])
def test_texts_are_those_of_the_local_engine(chat):
    some, served = questions.generations(5, until=("a", "b", "c", "d", "e")), Served()
    with server(served) as (url, asked):
        found = Endpoint(url, "tiny", chat=chat, key="secret").generate(some)
    for text, request in zip(found, some):
        said = f"<user> {request.prompt}\n<assistant> " if chat else request.prompt
        assert text == questions.greedy(served.model, Generation(said, request.until, request.max_new_tokens))
    assert {path for path, _, _ in asked} == {"/v1/chat/completions" if chat else "/v1/completions"}
    assert all(headers["Authorization"] == "Bearer secret" for _, _, headers in asked)
    assert all(len(body["stop"]) == 4 and body["temperature"] == 0 for _, body, _ in asked)


def test_an_evaluation_over_the_network_equals_a_local_one(tmp_path):
    served, task = Served(), questions.task(questions.likelihoods(6))
    with server(served) as (url, _):
        found = run.evaluate(Endpoint(url, "tiny"), task, cache=tmp_path)
    assert found == run.evaluate(served.model, task, cache=False)


def test_a_busy_server_is_asked_again_with_longer_waits(waits):
    served, answers = (
        Served(),
        iter([(503, {}, {}), (429, {}, {"Retry-After": "7"}), (500, b"not JSON", {}), (200, b"{", {})]),
    )
    with server(lambda path, body: next(answers, None) or served(path, body)) as (url, asked):
        (text,) = Endpoint(url, "tiny", concurrency=1).generate([Generation("prompt", (), 3)])
    assert text == questions.greedy(served.model, Generation("prompt", (), 3))
    assert len(asked) == 5 and waits == [0.5, 7.0, 14.0, 28.0]


def test_a_dead_server_ends_the_evaluation_and_what_came_before_is_kept(waits, tmp_path):
    served, task, alive = Served(), questions.task(questions.generations(6)), [3]

    def dying(path, body):
        alive[0] -= 1
        return served(path, body) if alive[0] >= 0 else (502, {"error": "gone"}, {})

    with server(dying) as (url, asked):
        engine = Endpoint(url, "tiny", concurrency=1, tries=3)
        with pytest.raises(EndpointError, match=r"3 tries \(status 502.*3 of 6 requests were answered and stay"):
            run.evaluate(engine, task, cache=tmp_path)
        assert len(asked) == 6 and waits == [0.5, 1.0]
        alive[0] = 99
        found = run.evaluate(engine, task, cache=tmp_path)
    assert found.asked == 3 and len(asked) == 9
    assert found == run.evaluate(served.model, task, cache=False)


def test_nobody_there(waits):
    with server(Served()) as (url, _):
        pass
    with pytest.raises(EndpointError, match=r"did not answer in 2 tries \(ConnectError.*start the server again"):
        Endpoint(url, "tiny", tries=2).generate([Generation("prompt", (), 3)])


def test_a_slow_server_is_given_up(waits):
    release = threading.Event()

    def slow(path, body):
        release.wait(20)
        return 200, {}, {}

    with server(slow) as (url, _):
        try:
            with pytest.raises(EndpointError, match=r"1 tries \(ReadTimeout"):
                Endpoint(url, "tiny", tries=1, seconds=0.2).generate([Generation("prompt", (), 3)])
        finally:
            release.set()


def test_servers_that_refuse_are_not_asked_again(waits):
    with server(lambda path, body: (404, {"error": "no such model"}, {})) as (url, asked):
        with pytest.raises(EndpointError, match=r"refused .status 404.*no such model"):
            Endpoint(url, "tiny", concurrency=1).generate(questions.generations(3))
        assert len(asked) == 1 and not waits
        with pytest.raises(EndpointError, match="gives no log-probabilities of prompts"):
            Endpoint(url, "tiny").loglikelihoods(questions.likelihoods(1))


def test_a_server_without_log_probabilities_is_told_so():
    with (
        server(Served("neither")) as (url, _),
        pytest.raises(EndpointError, match=r"no log-probabilities of prompts .*echo.*prompt_logprobs"),
    ):
        Endpoint(url, "tiny").loglikelihoods(questions.likelihoods(1))


def test_refusals():
    with pytest.raises(ValueError, match="begins with http"):
        Endpoint("localhost:8000", "tiny")
    with pytest.raises(ValueError, match="numbers from 1"):
        Endpoint("http://localhost", "tiny", tries=0)
    with pytest.raises(ValueError, match="chat completions do not give"):
        Endpoint("http://localhost", "tiny", chat=True).loglikelihoods(questions.likelihoods(1))
    names = {Endpoint("http://a", "m", revision=each, chat=chat).identity for each in "xy" for chat in (True, False)}
    assert len(names) == 4
