"""What our server costs beside its engine alone: the same requests through both, in turns.

    python -m lib.peers.server_overhead FOLDER [--clients 16] [--rounds 5] [--input-tokens 256] [--new-tokens 128]

The server is a process of its own and answers streams over HTTP; the engine's loop runs in this process, on the same
weights, with the same number of slots, and does nothing but generate. Whichever is not asked is idle. Both write the
same tokens (checked), so the ratio of their times is the price of HTTP, text, streams and scheduling.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lib import timing
from lib.decoding.requests import Request
from lib.metrics import load, meanwhile, schedules
from lib.metrics.score import Score, bootstrap
from lib.peers import load_prompts, servers
from lib.serving import artifacts
from lib.serving.limits import Limits

HEAD = 64  # positions of a slot beside the prompt and the answer


def alone(artifact: artifacts.Artifact, prompts: Sequence[list[int]], new_tokens: int) -> tuple[float, int]:
    """(seconds, tokens) of the engine's loop for all prompts (token ids) at once, each up to the model's end."""
    asked = [Request(list(each), new_tokens, ends=artifact.ends, own=artifact.own) for each in prompts]
    begun = timing.clock()
    for each in asked:
        artifact.loop.add(each)
    artifact.loop.run()
    return timing.clock() - begun, sum(len(each.answer.token_ids) for each in asked)


def served(server: servers.Running, prompts: Sequence[str], new_tokens: int) -> tuple[float, int]:
    """(seconds, tokens) of the same through the server, a client for each prompt."""
    plan = schedules.closed(len(prompts), len(prompts))
    found = load.measure(server.url, server.model, prompts, plan, new_tokens=new_tokens)
    if found.failed:
        raise RuntimeError(f"requests failed: {found.failed}; all must be answered; look into the server's log.")
    return found.seconds, sum(call.tokens for call in found.good)


def rounds(folder: Path, prompts: Sequence[Sequence[str]], *, new_tokens: int, log: Path) -> list[dict]:
    """A row for each of `prompts` but the first, which warms up: seconds of both, tokens, and what others used.

    prompts: one a client, others in each round, since both keep what they have read. Raises RuntimeError where the
    server wrote other tokens than the engine.
    """
    longest = max(len(each) for some in prompts for each in some)  # characters are at least as many as tokens
    context, slots = longest + new_tokens + HEAD, len(prompts[0])
    engine = artifacts.load(str(folder), Limits(slots=slots, total_tokens=context), embedding_bits=8)
    command, rows = servers.command("thimble", folder, slots=slots, context=context), []
    with servers.running(command, log) as server:
        for some in prompts:
            with meanwhile.watched(server.process.pid) as around:
                own, tokens = alone(engine, [engine.ids(each) for each in some], new_tokens)
                theirs, told = served(server, some, new_tokens)
            if tokens != told:
                raise RuntimeError(f"the server wrote {told} tokens, the engine {tokens}; both must write the same.")
            rows.append({"engine": own, "server": theirs, "tokens": tokens, "others": around.others})
    return rows[1:]


def overhead(rows: Sequence[dict]) -> Score:
    """The share of the server's time that the engine alone does not need: the median of the rounds."""
    values = [1 - row["engine"] / row["server"] for row in rows]
    return Score(float(np.median(values)), bootstrap(values, np.median), len(values), "share", False)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a line of JSON a round, and the overhead; returns the exit status."""
    made = argparse.ArgumentParser(prog="python -m lib.peers.server_overhead", description=__doc__.splitlines()[0])
    made.add_argument("folder", type=Path, help="of a model, as the server takes it")
    made.add_argument("--clients", type=int, default=16)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--input-tokens", type=int, default=256)
    made.add_argument("--new-tokens", type=int, default=128)
    given = made.parse_args(arguments)
    try:
        count, size = given.clients * (given.rounds + 1), given.input_tokens
        texts = load_prompts.of_length("packaged", str(given.folder), count, size)
        prompts = [texts[place :: given.rounds + 1] for place in range(given.rounds + 1)]
        with tempfile.TemporaryDirectory(prefix="thimble-overhead-") as scratch:
            log = Path(scratch) / "log"
            rows = rounds(given.folder, prompts, new_tokens=given.new_tokens, log=log)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f"server_overhead: {error}", file=sys.stderr)
        return 2
    for row in rows:
        print(json.dumps(row))
    found = overhead(rows)
    print(f"overhead {found}, 95 % interval {found.interval}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
