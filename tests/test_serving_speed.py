"""Servers measured in turns: processes that begin and end, rows that are kept, and what is said where one lacks."""

import json
import sys
from pathlib import Path

import psutil
import pytest

from lib import checkpoints, tasks
from lib.export import gguf_contents
from lib.metrics import load
from lib.peers import load_meters, load_prompts, server_overhead, servers, serving_models, serving_speed
from tests import gguf_models, served, tiny

STAND_IN = """
import http.server, json, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(500 if "fail" in sys.argv else 200); self.end_headers()
        for _ in range(body["max_tokens"]):
            self.wfile.write(b"data: " + json.dumps({"choices": [{"text": "x"}]}).encode() + b"\\n\\n")
        used = {"completion_tokens": body["max_tokens"], "prompt_tokens": 3}
        self.wfile.write(b"data: " + json.dumps({"choices": [], "usage": used}).encode() + b"\\n\\ndata: [DONE]\\n\\n")
    def log_message(self, *given):
        print(*given, flush=True)

print("begins", flush=True)
if "end" in sys.argv:
    sys.exit("no model here")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def command(process: psutil.Process) -> str:
    """What a process runs; nothing where it has ended, though nobody has asked how."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # of which a zombie is one
        return ""


@pytest.fixture
def stand_in(tmp_path):
    """A command of a small server; more words change what it does."""
    script = tmp_path / "a server.py"
    script.write_text(STAND_IN)
    return lambda *more: servers.Command((sys.executable, "-S", str(script), "{port}", *more), "a model")


def test_rounds_are_kept_and_go_on(stand_in, tmp_path, capsys):
    how = {"clients": [1, 2], "new_tokens": 3, "requests": 2}
    systems = {"one": stand_in(), "other's": stand_in(), "broken": stand_in("end"), "failing": stand_in("fail")}
    rows = serving_speed.rounds(systems, tmp_path / "rows", ["a", "b"], count=1, **how)
    assert [(each["server"], each["clients"]) for each in rows] == [
        ("failing", 1), ("failing", 2), ("one", 1), ("one", 2), ("other's", 1), ("other's", 2),
    ]  # fmt: skip
    good = [each for each in rows if each["server"] == "one"]
    assert [each["tokens"] for each in good] == [6, 12] and good[1]["prompt_tokens"] == 12 and not good[1]["failed"]
    assert len(good[1]["samples"]["ttft"]) == 4 and good[0]["peak"] > 1 << 20 and "joules_a_token" in good[0]
    assert good[0]["percentiles"]["ttft"]["50"][0] > 0
    assert rows[0]["failed"] == {"status 500": 2} and "no model here" in capsys.readouterr().err
    path = tmp_path / "rows" / "load-0-one-2.json"
    path.unlink()
    kept = (tmp_path / "rows" / "load-0-one-1.json").read_text()
    again = serving_speed.rounds({"one": stand_in()}, tmp_path / "rows", ["a"], count=1, **how)
    assert path.exists() and (tmp_path / "rows" / "load-0-one-1.json").read_text() == kept and len(again) == 6
    assert not [each for each in psutil.Process().children(recursive=True) if "a server.py" in command(each)]


def test_ours_stands_beside_each_other_server_round_by_round():
    rows = [
        {"server": name, "clients": clients, "round": turn, "tokens": tokens, "tokens_per_second": rate,
         "percentiles": {"ttft": {"99": [first, 0, 0]}}}
        for name, clients, turn, tokens, rate, first in (
            ("thimble", 4, 0, 9, 30.0, 0.1), ("llama.cpp", 4, 0, 9, 10.0, 0.4),
            ("thimble", 4, 1, 9, 40.0, 0.1), ("llama.cpp", 4, 1, 9, 20.0, 0.1),
            ("thimble", 4, 2, 9, 50.0, 0.1), ("llama.cpp", 4, 2, 9, 10.0, 0.2),
            ("thimble", 1, 0, 9, 5.0, 0.1), ("vllm", 1, 0, 0, 0.0, float("nan")), ("vllm", 1, 1, 9, 5.0, 0.1),
        )
    ]  # fmt: skip
    (found,) = serving_speed.ratios(rows)  # the server that failed has no ratio, and the round that ours lacks none
    assert (found["clients"], found["beside"], found["rounds"]) == (4, "llama.cpp", 3)
    assert found["tokens"] == 3.0 and found["ttft"] == 0.5
    assert found["tokens interval"][0] < 3.0 < found["tokens interval"][1]


def test_others_hold_cores_until_it_is_over():
    with serving_speed.crowded(2):
        spinning = [each for each in psutil.Process().children() if serving_speed.SPIN in command(each)]
        assert len(spinning) == 2
    assert not any(command(each) for each in spinning)


def test_no_server_is_asked_a_prompt_twice(stand_in, tmp_path, monkeypatch):
    """It keeps what it has read, and would seem quick to begin."""
    asked, real = [], load.measure
    monkeypatch.setattr(load, "measure", lambda *given, **how: asked.append(given[2]) or real(*given, **how))
    count = serving_speed.needed([1, 3], 2)
    prompts = [f"prompt {place}" for place in range(count)]
    how = {"clients": [1, 3], "new_tokens": 2, "requests": 2, "count": 1}
    serving_speed.rounds({"one": stand_in()}, tmp_path, prompts, **how)
    assert [len(each) for each in asked] == [2, 2, 6] and [one for each in asked for one in each] == prompts
    assert load_prompts.shares(["a", "b", "c"], [2, 3]) == [["a", "b"], ["c", "a", "b"]]
    meters = {name: lambda *given, **how: asked.append(given[-1]) or {} for name in ("ours", "guidellm")}
    for name, meter in meters.items():
        monkeypatch.setattr(load_meters, name, meter)
    asked.clear()
    prompts = list(map(str, range(load_meters.needed([1, 2], 2, 3))))
    list(load_meters.rounds("url", "m", "tokenizer", prompts, clients=[1, 2], count=2, requests=3, new_tokens=2))
    assert [one for each in asked for one in each] == prompts and len(asked) == 1 + 2 * 2 * 2


def test_another_setting_is_refused(tmp_path):
    serving_speed.check(tmp_path / "rows", {"new_tokens": 3, "clients": (1, 2)})
    serving_speed.check(tmp_path / "rows", {"new_tokens": 3, "clients": [1, 2]})
    with pytest.raises(ValueError, match=r"new_tokens=4, where .* was measured with 3"):
        serving_speed.check(tmp_path / "rows", {"new_tokens": 4, "clients": [1, 2]})


def test_commands(tmp_path, monkeypatch):
    folder = tiny.save(tmp_path / "my model")
    ours = servers.command("thimble", folder, slots=5, context=300, cache_bits=8)
    told = " ".join(ours.arguments)
    assert "--slots 5" in told and "--max-total-tokens 300" in told and "--cache-bits 8" in told
    with pytest.raises(ValueError, match="server 'tgi' is unknown"):
        servers.command("tgi", folder)
    with pytest.raises(ValueError, match="cache_bits of vllm"):
        servers.command("vllm", folder, cache_bits=8)
    with pytest.raises(FileNotFoundError, match="none is not there"):
        servers.command("thimble", tmp_path / "none")
    monkeypatch.delenv("THIMBLE_PEERS", raising=False)
    with pytest.raises(FileNotFoundError, match="THIMBLE_PEERS is not set"):
        servers.command("vllm", folder)
    monkeypatch.setenv("THIMBLE_PEERS", str(tmp_path))
    for kind, path in {
        "llama.cpp": "build/bin/llama-server",
        "transformers": "bin/transformers",
        "vllm": "bin/python",
    }.items():
        with pytest.raises(FileNotFoundError, match=f"the server of {kind} must be installed; run: "):
            servers.command(kind, folder)
        program = tmp_path / kind / path
        program.parent.mkdir(parents=True)
        program.touch()
        found = servers.command(kind, folder, context=300)
        assert found.arguments[0] == str(program) and found.arguments.count("{port}") == 1
    assert "300" in found.arguments and found.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_prompts_are_as_long_as_asked(tmp_path):
    folder = str(tiny.save(tmp_path / "model"))
    found = load_prompts.of_length("packaged", folder, 3, 20)
    assert len(set(found)) == 3 and all(len(each) >= 15 for each in found)
    assert serving_speed.main(["tgi=x", "--folder", str(tmp_path / "rows")]) == 2
    with pytest.raises(ValueError, match="ask shorter ones"):
        load_prompts.of_length("packaged", folder, 1, 10**8)
    asked = tasks.load("packaged_arithmetic", count=6).samples
    found = load_prompts.of_task("packaged_arithmetic", folder, 6, 10**4)
    assert found == [each.requests[0].prompt for each in asked]  # as they are, of lengths of their own
    lengths = sorted(map(len, found))  # a byte is a token here
    some = load_prompts.of_task("packaged_arithmetic", folder, 6, lengths[2])
    assert lengths[0] < lengths[-1] and [len(each) <= lengths[2] for each in found].count(True) == len(some) < 6
    with pytest.raises(ValueError, match=f"have {lengths[0]} tokens or more, and at most 3 were allowed"):
        load_prompts.of_task("packaged_arithmetic", folder, 6, 3)


def test_what_cannot_be_compared_is_told_before_a_model_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("THIMBLE_PEERS", raising=False)
    monkeypatch.setattr(serving_models, "made", lambda *given: pytest.fail("a model was made"))
    folder = tiny.save(tmp_path / "model")
    for systems, said in ((["thimble", "vllm"], "THIMBLE_PEERS is not set"), ([f"thimble={folder}"] * 2, "kind twice")):
        assert serving_speed.main([*systems, "--folder", str(tmp_path / said), "--tokenizer", str(folder)]) == 2
        assert said in capsys.readouterr().err


def test_the_setting_can_be_written(tmp_path):
    given = serving_speed.parser().parse_args(["thimble=a", "--folder", str(tmp_path)])
    json.dumps(vars(given) | {"folder": None})


def test_overhead_is_what_the_engine_does_not_need():
    found = server_overhead.overhead([{"engine": 0.95, "server": 1.0}, {"engine": 1.8, "server": 2.0}] * 3)
    assert found.value == pytest.approx(0.075) and found.n == 6


@pytest.mark.long
def test_our_server_writes_the_engine_s_tokens(tmp_path):
    folder = tiny.save(tmp_path / "my model")
    prompts = [["a few words", "another text"], ["and more of them", "the last"]]
    (row,) = server_overhead.rounds(folder, prompts, new_tokens=5, log=tmp_path / "log")
    assert row["tokens"] == 10 and row["engine"] > 0 and row["server"] > 0


def test_a_report_of_guidellm_is_read(monkeypatch, tmp_path, capsys):
    told = {"successful": {"median": 54.4, "mean": 9.0}}
    metrics = {"time_to_first_token_ms": told, "inter_token_latency_ms": {"successful": {"median": 3.0}}}
    metrics |= {"output_tokens_per_second": told, "request_totals": {"successful": 16, "errored": 1}}
    found = load_meters.of_report({"benchmarks": [{"metrics": metrics}]})
    assert found == {"ttft": 54.4, "tpot": 3.0, "tokens/s": 9.0, "requests": 16, "failed": 1}
    monkeypatch.setenv("THIMBLE_PEERS", str(tmp_path))
    assert load_meters.main(["http://127.0.0.1:9", "m"]) == 2 and "pip install guidellm" in capsys.readouterr().err


@pytest.mark.long
def test_guidellm_measures_the_same_load(tmp_path):
    try:
        load_meters.program()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    how = {"clients": [2], "count": 1, "requests": 4, "new_tokens": 5}
    with served.running(served.artifact()) as server:
        url = str(server.base_url).rstrip("/")
        rows = list(load_meters.rounds(url, "tiny", tiny.save(tmp_path / "a model"), ["ab", "cdef"], **how))
    assert [each["meter"] for each in rows] == ["ours", "guidellm"]
    for row in rows:
        assert (row["requests"], row["failed"]) == (4, 0) and min(row["ttft"], row["tpot"], row["tokens/s"]) > 0


@pytest.mark.long
def test_each_server_gets_what_it_reads(tmp_path, monkeypatch):
    """The folder keeps what GPTQ gave, the file holds Q4_0 and Q8_0, and both say how far they went."""
    monkeypatch.setattr(serving_models, "WINDOWS", 1)
    model, source = gguf_models.build(hidden_size=64, intermediate_size=64), str(tmp_path / "a model")
    for part in (model, model.tokenizer):
        part.save_pretrained(source)
    ours = serving_models.made("thimble", source, tmp_path / "made")
    assert checkpoints.checkpoint(ours)["quantization_config"]["format"] == "pack-quantized"
    theirs = serving_models.made("llama.cpp", source, tmp_path / "made")
    assert set(gguf_contents.types(theirs)) == {"Q4_0", "Q8_0", "F32"}
    assert serving_models.nats(ours) > 0 and serving_models.nats(theirs) > 0
    kept = (ours / "model.safetensors").stat().st_mtime_ns
    assert serving_models.made("vllm", source, tmp_path / "made") == ours
    assert (ours / "model.safetensors").stat().st_mtime_ns == kept
    assert (
        serving_models.made("transformers", source, tmp_path) == Path(source) and serving_models.nats(tmp_path) is None
    )
    with pytest.raises(ValueError, match="no artifact for a server 'tgi'"):
        serving_models.made("tgi", source, tmp_path)
