"""Our load meter beside GuideLLM's, in turns, on the same server and the same prompts.

    python -m lib.peers.load_meters http://127.0.0.1:8000 MODEL --tokenizer FOLDER [--clients 1 4] [--rounds 3]

GuideLLM lives in an environment of its own, `guidellm` in `THIMBLE_PEERS`. Both keep so many clients busy as
`--clients` says, one count after the other, and both count the time to the first token from when a request is sent.
What it calls inter-token latency is our time per output token; its "time per output token" holds the first one too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lib.metrics import load, meanwhile, schedules
from lib.peers import load_prompts
from lib.sources import models, packaged

INSTALL = (
    "python3 -m venv $THIMBLE_PEERS/guidellm && $THIMBLE_PEERS/guidellm/bin/pip install guidellm==0.8.1 torch==2.13.0"
)
NAMES = {  # ours -> GuideLLM's, in milliseconds
    "ttft": "time_to_first_token_ms",
    "tpot": "inter_token_latency_ms",
}
TIMEOUT = 3600  # seconds of one run


def program() -> Path:
    """GuideLLM's command; FileNotFoundError with what installs it where it is not there."""
    root = os.environ.get("THIMBLE_PEERS")
    found = Path(root or "/none").expanduser() / "guidellm" / "bin" / "guidellm"
    if not root or not found.is_file():
        where = f"{found} is not there" if root else "THIMBLE_PEERS is not set"
        raise FileNotFoundError(f"{where}, so GuideLLM cannot be run; it has an environment of its own; run: {INSTALL}")
    return found


def guidellm(
    url: str, model: str, tokenizer: Path | str, prompts: Sequence[str], *, clients: int, requests: int, new_tokens: int
) -> dict:
    """What GuideLLM says of one closed load: milliseconds of `NAMES` (medians), tokens a second, counts.

    url: without "/v1". tokenizer: a folder. Raises FileNotFoundError without it, RuntimeError with the end of its words
    where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="thimble-load-") as scratch:
        home, report = Path(scratch), Path(scratch) / "report.json"
        rows = [{"prompt": prompts[place % len(prompts)]} for place in range(requests)]
        (home / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        backend = {"kind": "openai_http", "target": url, "model": model, "request_format": "/v1/completions"}
        backend |= {"max_tokens": new_tokens, "extras": {"body": {"temperature": 0}}}
        spec = {
            "backend": backend, "profile": {"kind": "concurrent", "streams": [clients]},
            "constraints": [{"kind": "max_requests", "count": requests}],
            "data": [{"kind": "json_file", "path": str(home / "prompts.jsonl")}],
            "tokenizer": {"kind": "huggingface_auto", "model": str(tokenizer)},
            "outputs": [{"kind": "json", "path": str(report)}],
        }  # fmt: skip
        (home / "scenario.json").write_text(json.dumps({"spec": spec}))
        told = [str(program()), "run", "--config", str(home / "scenario.json"), "--disable-console"]
        quiet = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(home), "TOKENIZERS_PARALLELISM": "0"}
        done = subprocess.run(
            told, capture_output=True, text=True, check=False, env={**os.environ, **quiet}, cwd=home, timeout=TIMEOUT
        )
        if done.returncode or not report.is_file():
            said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise RuntimeError(f"guidellm ended with {done.returncode}; a report is expected; its last words:\n{said}")
        return of_report(json.loads(report.read_text()))


def of_report(document: dict) -> dict:
    """The numbers of a report of GuideLLM's with one benchmark."""
    (found,) = document["benchmarks"]
    metrics, totals = found["metrics"], found["metrics"]["request_totals"]
    row = {name: metrics[theirs]["successful"]["median"] for name, theirs in NAMES.items()}
    row |= {"tokens/s": metrics["output_tokens_per_second"]["successful"]["mean"]}
    return row | {"requests": totals["successful"], "failed": totals["errored"]}


def ours(url: str, model: str, prompts: Sequence[str], *, clients: int, requests: int, new_tokens: int) -> dict:
    """What our meter says of the same load, in the same units."""
    found = load.measure(f"{url}/v1", model, prompts, schedules.closed(clients, requests), new_tokens=new_tokens)
    row = {name: 1000 * float(np.median(found.samples(name))) for name in NAMES}
    return row | {
        "tokens/s": found.tokens_per_second, "requests": len(found.good), "failed": sum(found.failed.values())
    }  # fmt: skip


def rounds(url, model, tokenizer: Path | str, prompts: Sequence[str], *, clients, count: int, requests: int, **how):
    """Yield a row a round, number of clients and meter: GuideLLM first in every second round.

    prompts: as many as `needed` says, so that the server is asked none twice.
    """
    first, *parts = load_prompts.shares(prompts, [1, *[requests] * (2 * count * len(clients))])
    ours(url, model, first, clients=1, requests=1, **how)  # warms up
    own = iter(parts)
    meters = {"ours": ours, "guidellm": lambda *given, **more: guidellm(*given[:2], tokenizer, *given[2:], **more)}
    for turn in range(count):
        for each in clients:
            for name in sorted(meters, reverse=turn % 2 == 0):
                with meanwhile.watched() as around:
                    found = meters[name](url, model, next(own), clients=each, requests=requests, **how)
                yield {"round": turn, "clients": each, "meter": name, **found, "others": around.others}


def needed(clients: Sequence[int], count: int, requests: int) -> int:
    """Prompts of all rounds of both meters, and of the request before."""
    return 1 + 2 * count * len(clients) * requests


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a line of JSON a row; returns the exit status."""
    made = argparse.ArgumentParser(prog="python -m lib.peers.load_meters", description=__doc__.splitlines()[0])
    made.add_argument("url", help="of a server, without /v1")
    made.add_argument("model", help="what the server calls it")
    made.add_argument("--tokenizer", default=packaged.NAME, help="a packaged name or a folder")
    made.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    made.add_argument("--requests", type=int, default=16)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--input-tokens", type=int, default=128)
    made.add_argument("--new-tokens", type=int, default=64)
    given = made.parse_args(arguments)
    try:
        program()
        folder, _ = models.find(given.tokenizer)
        count = needed(given.clients, given.rounds, given.requests)
        prompts = load_prompts.of_length("packaged", given.tokenizer, count, given.input_tokens)
        how = {"clients": given.clients, "requests": given.requests, "new_tokens": given.new_tokens}
        for row in rounds(given.url.rstrip("/"), given.model, folder, prompts, count=given.rounds, **how):
            print(json.dumps(row), flush=True)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f"load_meters: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
