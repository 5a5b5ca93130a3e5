"""What a server allows, and what happens at its limits: too many, too large, too slow, gone, unknown, broken."""

import asyncio
import concurrent.futures
import dataclasses
import json
import socket
import threading

import httpx
import pytest

from lib.serving import artifacts
from lib.serving.__main__ import main
from lib.serving.answers import Ask
from lib.serving.artifacts import check_room
from lib.serving.hall import Hall
from lib.serving.limits import Limits
from lib.serving.listener import bind
from tests import served, tiny

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server():
    with served.running(served.artifact()) as client:
        yield client


@pytest.fixture
def stuck(server):
    """An engine that waits before each step until it is let go."""
    gate = threading.Event()
    server.hall.engine._call(gate.wait)
    yield gate
    gate.set()
    served.until(lambda: not server.hall.answers, "the end of all answers")


def idle(server):
    served.until(lambda: not server.hall.answers, "the end of all answers")
    backend = server.hall.loaded["tiny"].loop.backend
    served.until(lambda: len(backend.free) == served.LIMITS.slots, "free slots")


def test_more_than_the_queue_holds_is_told_429(server, stuck):
    most = served.LIMITS.slots + served.LIMITS.queue
    with concurrent.futures.ThreadPoolExecutor(most) as pool:
        running = [pool.submit(server.generate, "a", max_new_tokens=1) for _ in range(most)]
        served.until(lambda: len(server.hall.answers) == most, "a full queue")
        found = server.generate("a", max_new_tokens=1)
        assert found.status_code == 429 and found.headers["retry-after"] == "1"
        assert found.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
        other = server.post("/v1/completions", json={"prompt": "a"})
        assert other.status_code == 429 and other.json()["error"]["type"] == "rate_limit_error"
        assert f"tgi_queue_size {float(most)}" in server.get("/metrics").text
        stuck.set()
        assert {each.result().status_code for each in running} == {200}
    idle(server)


def raw(server, path, body):
    """A connection that has sent a request and waits."""
    url = httpx.URL(server.base_url)
    made = socket.create_connection((url.host, url.port))
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    made.sendall(head.encode() + content)
    return made


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_a_client_that_leaves_frees_its_slot(server, path):
    asked = {"inputs": "a", "parameters": {"max_new_tokens": 500}}
    made = raw(server, path, asked)
    served.until(lambda: server.hall.loaded["tiny"].loop.active, "the answer")
    made.close()
    idle(server)


def test_cancelling_one_that_waits_leaves_the_others(server, stuck):
    slots = served.LIMITS.slots
    with concurrent.futures.ThreadPoolExecutor(slots + 1) as pool:
        running = [pool.submit(server.generate, "abc", max_new_tokens=6) for _ in range(slots)]
        served.until(lambda: len(server.hall.answers) == slots, "requests")
        waiting = raw(server, "/generate", {"inputs": "x", "parameters": {"max_new_tokens": 5}})
        served.until(lambda: len(server.hall.answers) == slots + 1, "a request that waits")
        last = pool.submit(server.generate, "abc", max_new_tokens=6)
        served.until(lambda: len(server.hall.answers) == slots + 2, "one behind it")
        waiting.close()
        served.until(lambda: len(server.hall.answers) == slots + 1, "the end of the one that waits")
        stuck.set()
        texts = {each.result().json()["generated_text"] for each in [*running, last]}
    assert len(texts) == 1
    idle(server)


def test_a_slow_reader_holds_no_slot(server):
    made = raw(server, "/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 500}})
    received = made.recv(1)
    idle_backend = server.hall.loaded["tiny"].loop
    served.until(lambda: not idle_backend.active, "the last token")
    while not received.endswith(b"0\r\n\r\n"):
        received += made.recv(1 << 16)
    assert received.count(b"data: ") == 500 and b'"finish_reason":"length"' in received
    made.close()


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize(
    "content,headers,kind",
    [
        (b"{", JSON, "JSON"), (b"\xff", JSON, "JSON"), (b"[" * 100_000, JSON, "JSON"), (b"1" * 10_000, JSON, "JSON"),
        (b"", JSON, "JSON"), (b"{}", {"Content-Type": "text/plain"}, 415), (b"{}", {}, 415),
        (b" " * ((2 << 20) + 1), JSON, 413),
    ],
)  # fmt: skip
def test_bodies_that_cannot_be_read(server, path, content, headers, kind):
    found = server.post(path, content=content, headers=headers)
    wanted = kind if isinstance(kind, int) else 400 if path.startswith("/v1") else 422
    assert found.status_code == wanted and "error" in found.json()


def test_a_prompt_of_a_million_tokens_is_refused_without_reading_it(server, monkeypatch):
    monkeypatch.setattr(artifacts.Artifact, "ids", lambda *_: pytest.fail("it was read"))
    found = server.generate("a" * 1_000_000)
    assert found.status_code == 422 and "must have less than 511 tokens. Given: at least" in found.json()["error"]
    found = server.post("/v1/completions", json={"prompt": "a" * 1_000_000})
    assert found.status_code == 400 and found.json()["error"]["code"] == "context_length_exceeded"


def test_a_body_that_lies_about_its_length_or_comes_in_pieces(server):
    parts = (b" " * (1 << 18) for _ in range(20))  # without a length in the header
    assert server.post("/generate", content=parts, headers=JSON).status_code == 413


def test_unknown_paths_and_methods(server):
    assert server.get("/nothing").status_code == 404 and server.get("/nothing").json()["error_type"] == "not_found"
    assert server.get("/generate").status_code == 405
    assert server.get("/v1/nothing").json()["error"]["type"] == "not_found_error"


def test_every_response_has_an_id(server):
    assert server.get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    first, second = (server.get("/nothing", headers={"X-Request-Id": "a b"}).headers["x-request-id"] for _ in range(2))
    assert first != second and len(first) == 32


def test_a_key_and_a_host_are_asked_for():
    with served.running(served.artifact(), key="secret", hosts=("127.0.0.1",)) as client:
        for path in ("/info", "/metrics", "/v1/models", "/openapi.json"):
            assert client.get(path).status_code == 401
        assert client.get("/info", headers={"Authorization": "Bearer secre"}).status_code == 401
        assert client.get("/info", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/health").status_code == 200
        found = client.get("/v1/models")
        assert found.json()["error"]["type"] == "authentication_error" and found.headers["www-authenticate"] == "Bearer"
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 422


def test_a_rate_for_each_address():
    limits = dataclasses.replace(served.LIMITS, rate=3)
    with served.running(served.artifact(limits=limits), limits=limits) as client:
        codes = [client.generate("a", max_new_tokens=1).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]


def test_an_answer_that_takes_too_long_is_told():
    limits = dataclasses.replace(served.LIMITS, seconds=0.05)
    with served.running(served.artifact(limits=limits), limits=limits) as client:
        gate = threading.Event()
        client.hall.engine._call(gate.wait)
        found = client.generate("a", max_new_tokens=5)
        assert found.status_code == 408 and found.json()["error_type"] == "timeout"
        (event,) = served.events(client.generate("a", "/generate_stream", max_new_tokens=5))
        assert event["error_type"] == "timeout"
        gate.set()
        served.until(lambda: not client.hall.answers, "the end")


def test_a_body_that_comes_too_slowly_is_told():
    limits = dataclasses.replace(served.LIMITS, body_seconds=0.05)
    with served.running(served.artifact(limits=limits), limits=limits) as client:
        url = httpx.URL(client.base_url)
        with socket.create_connection((url.host, url.port)) as made:
            made.sendall(
                b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
            )
            assert b" 408 " in made.recv(1 << 12).splitlines()[0]


def test_running_answers_are_told_that_the_server_stops(server):
    with served.running(served.artifact()) as client:
        gate = threading.Event()
        client.hall.engine._call(gate.wait)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            whole = pool.submit(client.generate, "a", max_new_tokens=400)
            stream = pool.submit(client.generate, "a", "/generate_stream", max_new_tokens=400)
            served.until(lambda: len(client.hall.answers) == 2, "two answers")
            client.hall.stop()
            assert client.generate("a").status_code == 503 and client.get("/health").status_code == 503
            client.hall.end()
            gate.set()
            assert whole.result().status_code == 503
            assert served.events(stream.result())[-1] == {
                "error": "The server is stopping.",
                "error_type": "unavailable",
            }


def test_a_model_that_fails_ends_its_requests_alone(server, monkeypatch, capsys):
    loop = server.hall.loaded["tiny"].loop
    monkeypatch.setattr(loop.backend.batch, "extend", lambda *_, **__: (_ for _ in ()).throw(OSError("/secret/path")))
    found = server.generate("a", max_new_tokens=3)
    assert found.status_code == 424 and found.json()["error_type"] == "generation"
    assert "secret" not in found.text and "/secret/path" in capsys.readouterr().err
    assert server.generate("a", max_new_tokens=3).status_code == 200  # in a fresh loop


def test_a_request_whose_logits_overflow_fails_alone(server, stuck):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        bad = pool.submit(server.generate, "abc", max_new_tokens=5, temperature=1e-300)
        good = pool.submit(server.generate, "abc", max_new_tokens=5)
        served.until(lambda: len(server.hall.answers) == 2, "two answers")
        stuck.set()
        assert good.result().status_code == 200
        assert bad.result().status_code == 424 and "not finite" in bad.result().json()["error"]
    idle(server)


def test_models_are_loaded_when_asked_for_and_let_go_by_memory():
    made = {name: served.artifact(name, seed=seed) for seed, name in enumerate(("first", "second"))}
    loads = []

    def load(name):
        loads.append(name)
        if name == "third":
            raise FileNotFoundError("/secret/place has vanished")
        return made[name]

    with served.running(names=["first", "second", "third"], load=load) as client:
        client.hall.memory = made["first"].nbytes
        for name in ("second", "first", "second", "second"):
            assert client.post("/v1/completions", json={"model": name, "prompt": "a"}).status_code == 200
        assert loads == ["second", "first", "second"] and list(client.hall.loaded) == ["second"]
        found = client.post("/v1/completions", json={"model": "third", "prompt": "a"})
        assert found.status_code == 503 and "secret" not in found.text


def test_models_that_are_too_large_together_do_not_stay_together():
    made = {name: served.artifact(name, seed=seed) for seed, name in enumerate(("first", "second"))}
    with served.running(names=list(made), load=made.get) as client:
        client.hall.memory = 2 * made["first"].nbytes - 1
        for name in ("second", "first"):
            assert client.post("/v1/completions", json={"model": name, "prompt": "a"}).status_code == 200
            assert list(client.hall.loaded) == [name]
        client.hall.memory += 1
        assert client.post("/v1/completions", json={"model": "second", "prompt": "a"}).status_code == 200
        assert list(client.hall.loaded) == ["first", "second"]


def test_a_model_without_room_takes_that_of_one_that_nobody_waits_for(capsys):
    made = {name: served.artifact(name, seed=seed) for seed, name in enumerate(("first", "second"))}

    def load(name):
        if client.hall.loaded:
            raise MemoryError("no room")
        return made[name]

    with served.running(names=list(made), load=load) as client:
        for name in ("first", "second"):
            assert client.post("/v1/completions", json={"model": name, "prompt": "a"}).status_code == 200
        assert list(client.hall.loaded) == ["second"] and "no room" not in capsys.readouterr().err


def test_a_model_that_is_let_go_while_a_request_is_read_still_answers():
    async def asked():
        hall, model = Hall({}, None, served.LIMITS), served.artifact()
        hall.offer(model)
        found = await hall.artifact()
        hall._evict(1)
        assert not hall.loaded
        (answer,) = hall.ask(found, [Ask(found.ids("ab"), 4)])
        await asyncio.wait_for(answer.whole(), 60)
        hall.close()
        return len(answer.told), list(hall.loaded)

    assert asyncio.run(asked()) == (4, ["tiny"])


def test_a_broken_tokenizer_and_files_that_vanish_fail_alone(tmp_path, capsys):
    """Files are read when a model is first asked for: what is wrong with one of them is told, and others go on."""
    names = ("whole", "no tokenizer", "half a tokenizer", "no weights")
    for name in names:
        tiny.save(tmp_path / name)
    (tmp_path / names[1] / "tokenizer.json").write_bytes(b"\x00{")
    half = tmp_path / names[2] / "tokenizer.json"
    half.write_bytes(half.read_bytes()[:500])
    (tmp_path / names[3] / "model.safetensors").unlink()
    load = lambda name: artifacts.load(str(tmp_path / name), served.LIMITS)  # noqa: E731
    with served.running(names=list(names), load=load) as client:
        for name in (*names[1:], names[0], *names[1:]):
            found = client.post("/v1/completions", json={"model": name, "prompt": "a", "max_tokens": 2})
            assert found.status_code == (200 if name == "whole" else 503)
            assert str(tmp_path) not in found.text and "Traceback" not in found.text
        (tmp_path / "whole" / "model.safetensors").unlink()  # read already, and needed no more
        assert client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 2}).status_code == 200
    assert "Traceback" in capsys.readouterr().err  # told to who runs it


def test_a_port_in_use_is_told_before_a_model_is_loaded(capsys):
    with bind("127.0.0.1", 0) as taken:
        assert taken.proto == socket.IPPROTO_TCP  # else every small response waits for 40 ms
        port = taken.getsockname()[1]
        assert main(["no-such-model", "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err
    assert main(["no-such-model", "--port", str(port)]) == 2  # free again at once
    assert "'no-such-model' is neither packaged nor a folder" in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_told_before_it_is_loaded(tmp_path, monkeypatch):
    model = tiny.llama()
    model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    check_room(tmp_path, "tiny")
    monkeypatch.setattr(artifacts, "available", lambda: artifacts.SPARE + 1000)
    with pytest.raises(MemoryError, match="MB of weights, and 0 MB of memory are free"):
        artifacts.load(str(tmp_path), served.LIMITS)


def test_a_control_group_bounds_the_memory(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert artifacts.available(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert artifacts.available(tmp_path) > 1000 and artifacts.available(tmp_path / "none") > 1000


def test_limits_are_numbers():
    with pytest.raises(ValueError, match="slots=0"):
        Limits(slots=0)


def test_folders_are_served_packed_and_as_they_are(tmp_path):
    model = tiny.llama()
    model.save_pretrained(tmp_path / "my model")
    model.tokenizer.save_pretrained(tmp_path / "my model")
    found = artifacts.load(str(tmp_path / "my model"), served.LIMITS)
    assert (found.name, found.packed, found.dtype) == ("my model", True, "packed 16 bits") and found.sha256
    assert asyncio.run(_text(found)) == served.runtime.generate(found.model, ["ab"], new_tokens=4)[0].text


async def _text(artifact):
    hall = Hall({}, None, served.LIMITS)
    hall.offer(artifact)
    (answer,) = hall.ask(artifact, [Ask(artifact.ids("ab"), 4)])
    await answer.whole()
    hall.close()
    return answer.generation.text
