"""Malformed requests: whatever is sent, the server answers with a status of its own, and answers on."""

import json
import os
import random
import subprocess
from pathlib import Path

import psutil
import pytest

from tests import served

PATHS = ("/", "/generate", "/generate_stream", "/tokenize", "/v1/completions", "/v1/chat/completions")
ODD = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 1e400, float("nan"), 1e-320, "", "a", "\ud800", "\x00",
    "é" * 50, [], [[]], [1], [[1], [2]], ["a", ""], {}, {"a": 1}, {"type": "json"}, {"include_usage": True}, "x" * 700,
    [{"role": "user", "content": "hi"}], [{"role": 3}], {"65": 101}, {"65": 1}, [256], [-1], 0.5, "1", 3.0,
)  # fmt: skip
TOLD = {200, 400, 404, 405, 408, 413, 415, 422, 424}


def bodies(server, count, seed):
    """Requests made from the description of the interface, each with something that it does not allow, or might."""
    draw = random.Random(seed)
    described = server.get("/openapi.json").json()["paths"]
    for _ in range(count):
        path = draw.choice(PATHS)
        schema = described[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
        body = {"inputs": "ab", "prompt": "ab", "messages": [{"role": "user", "content": "a"}]}
        body = {name: value for name, value in body.items() if name in schema}
        inner = schema.get("parameters", {}).get("properties")
        for name in draw.sample([*schema, "unknown"], k=draw.randint(0, min(4, len(schema)))):
            body[name] = draw.choice(ODD)
        if inner and isinstance(body.get("parameters", {}), dict):
            body["parameters"] = {"max_new_tokens": 3} | {
                name: draw.choice(ODD) for name in draw.sample([*inner], k=draw.randint(0, 4))
            }
        body.setdefault("max_tokens", 3) if "max_tokens" in schema else None
        content = json.dumps(body).encode()
        if draw.random() < 0.3:
            content = broken(content, draw)
        yield path, content


def broken(content, draw):
    """A body of which bytes are lost, changed or doubled."""
    place = draw.randrange(len(content))
    kind = draw.randrange(4)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :]
    if kind == 2:
        return content[:place] + content
    return draw.choice([b"null", b"[]", b"1", b'"a"', b"\xff\xfe", b"{" * 5000, b"-", b"[" + b"1," * 5000 + b"1]"])


def survives(server, count, seed):
    seen = {}
    for path, content in bodies(server, count, seed):
        found = server.post(path, content=content, headers={"Content-Type": "application/json"})
        assert found.status_code in TOLD, (path, content, found.text)
        assert "Traceback" not in found.text and os.sep + "lib" + os.sep not in found.text
        seen[found.status_code] = seen.get(found.status_code, 0) + 1
    assert seen[200] and len(seen) >= 3
    served.until(lambda: not server.hall.answers, "the end of all answers")
    assert server.generate("ab", max_new_tokens=3).status_code == 200
    return seen


@pytest.fixture(scope="module")
def server():
    limits = served.Limits(slots=4, queue=32, piece=24, total_tokens=32)
    with served.running(served.artifact(limits=limits), limits=limits) as client:
        yield client


def test_300_malformed_bodies(server):
    survives(server, 300, 0)


@pytest.mark.long
def test_10_000_malformed_bodies_leave_the_memory_as_it_was(server):
    process = psutil.Process()
    survives(server, 1000, 1)
    before, files = process.memory_info().rss, process.num_fds()
    survives(server, 10_000, 2)
    assert process.memory_info().rss - before < 32 << 20 and abs(process.num_fds() - files) < 8


@pytest.mark.long
def test_schemathesis_finds_nothing(server, tmp_path):
    program = Path(os.environ.get("THIMBLE_PEERS", "/none")).expanduser() / "schemathesis" / "bin" / "schemathesis"
    if not program.is_file():
        pytest.skip("schemathesis is no requirement; it is looked for in THIMBLE_PEERS/schemathesis (`make clients`)")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,negative_data_rejection"
    done = subprocess.run(
        [program, "run", f"{server.base_url}/openapi.json", "--checks", checks, "--max-examples", "60",
         "--phases", "examples,coverage,fuzzing", "--seed", "1", "--no-color"],
        capture_output=True, text=True, check=False, cwd=tmp_path,  # where it keeps what it found
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
