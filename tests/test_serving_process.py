"""The command: started, asked, ended by a signal while it answers, and started again on the same port."""

import concurrent.futures
import json
import re
import signal
import subprocess
import sys

import httpx
import pytest

from lib.files import ROOT
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("models") / "a model"
    model = tiny.llama()
    model.save_pretrained(made)
    model.tokenizer.save_pretrained(made)
    return made


def start(folder, *more):
    process = subprocess.Popen(
        [sys.executable, "-m", "lib.serving", str(folder), *more], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if address := re.match(r"http://127\.0\.0\.1:(\d+)", line):
            return process, int(address[1])
    raise AssertionError("".join(lines))


def end(process):
    process.stdout.close()
    return process.wait(60)


@pytest.mark.long
def test_a_signal_lets_answers_finish_and_the_port_is_free_at_once(folder):
    process, port = start(folder, "--port", "0")
    url = f"http://127.0.0.1:{port}"
    assert httpx.get(f"{url}/info").json()["model_id"] == "a model"
    asked = {"inputs": "ab", "parameters": {"max_new_tokens": 400}}
    with httpx.stream("POST", f"{url}/generate_stream", json=asked, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        told = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert told[-1]["details"]["finish_reason"] == "length" and told[-1]["index"] == 400
    assert end(process) == 0
    process, _ = start(folder, "--port", str(port), "--grace", "0")
    with httpx.stream("POST", f"{url}/generate_stream", json=asked, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        told = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert told[-1].get("error_type") == "unavailable" or told[-1]["index"] == 400
    assert end(process) == 0


@pytest.mark.long
def test_two_servers_begin_on_one_cache_folder(folder, tmp_path, monkeypatch):
    """The kernels are compiled by one of them, while the other waits; both answer alike."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "a cache"))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        begun = list(pool.map(lambda _: start(folder, "--port", "0"), range(2)))
    asked = {"inputs": "ab", "parameters": {"max_new_tokens": 20, "details": True}}
    one, two = (httpx.post(f"http://127.0.0.1:{port}/generate", json=asked, timeout=60).json() for _, port in begun)
    assert one == two and one["details"]["generated_tokens"] == 20
    assert len(list((tmp_path / "a cache").rglob("*.so"))) == 1
    for process, _ in begun:
        process.send_signal(signal.SIGTERM)
        assert end(process) == 0


def test_what_cannot_be_served_is_said(tmp_path, warm):
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "lib.serving", str(tmp_path / "empty"), "--port", "0"], cwd=ROOT, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("serving: ") and "Traceback" not in done.stderr
