"""Our server beside others' under the same load: rounds in turns, a fresh process each, kept as they come.

    python -m lib.peers.serving_speed --folder data/serving thimble llama.cpp transformers vllm [--clients 1 4 16 64]
        [--rounds 3] [--input-tokens 256] [--new-tokens 128] [--busy 2]
    python -m lib.peers.serving_speed --folder data/serving thimble=FOLDER llama.cpp=FILE.gguf

A server without a model gets one of 4 bits, made out of --tokenizer's checkpoint (`serving_models`).

Each round starts every server once, warms it up, asks by so many clients as `--clients` says one count after the other,
and ends it (A B C A B C). A load that is done is kept; the same command goes on where a killed one ended. The prompts
are the same texts for all; answers are greedy, and may end before `--new-tokens` where the model ends its text. The
last lines tell how many times as many tokens a second our server gives as each other one, with the interval over
rounds. With `--busy` so many other processes want a core all the time: a machine that does something else too.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lib import files, machine
from lib.metrics import energy, load, meanwhile, schedules
from lib.metrics.score import Score, bootstrap
from lib.peers import load_prompts, servers, serving_models
from lib.sources import models, packaged

PERCENTILES = ("ttft", "tpot", "itl", "latency")
SETTING = "setting.json"
WARM = 2  # requests before the first load
PATIENCE = 3600.0  # seconds in which a server must begin: vLLM compiles its model, on a busy machine for long
# ends by itself where this process is killed
SPIN = "import os\nours = os.getppid()\nwhile os.getppid() == ours:\n    sum(range(100_000))"


def rounds(
    systems: dict[str, servers.Command],
    folder: Path,
    prompts: Sequence[str],
    *,
    clients: Sequence[int],
    new_tokens: int,
    count: int = 3,
    requests: int = 2,
) -> list[dict]:
    """All rows, measured now or kept in `folder` before; see `row` for what they hold.

    requests: of each client. prompts: as many as `needed` says, so that no server is asked one twice. A server that
    does not start, or that fails, is told, and the others go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first, *parts = load_prompts.shares(prompts, [WARM, *(requests * each for each in clients)])
    parts = dict(zip(clients, parts))
    for turn in range(count):
        for name, command in systems.items():
            left = [each for each in clients if not _place(folder, turn, name, each).exists()]
            if not left:
                continue
            try:
                with servers.running(command, folder / f"{_plain(name)}.log", seconds=PATIENCE) as server:
                    warm = schedules.closed(1, WARM)
                    load.measure(server.url, server.model, first, warm, new_tokens=min(8, new_tokens))
                    for each in left:
                        found = row(server, parts[each], each, requests * each, new_tokens)
                        found |= {"server": name, "round": turn, "start_seconds": server.seconds, "peak": server.peak()}
                        files.write_text(_place(folder, turn, name, each), json.dumps(found))
            except RuntimeError as error:
                print(f"{name}, round {turn + 1}: {error}", file=sys.stderr, flush=True)
    return kept(folder)


def needed(clients: Sequence[int], requests: int) -> int:
    """Prompts that one server is asked in a round."""
    return WARM + requests * sum(clients)


def row(server: servers.Running, prompts: Sequence[str], clients: int, requests: int, new_tokens: int) -> dict:
    """One load: tokens a second, percentiles [s] with intervals, the times of all calls, and what the machine did.

    joules_a_token, joules_a_request: null where no sensor tells them.
    """
    plan = schedules.closed(clients, requests)
    with meanwhile.watched(server.process.pid) as around, energy.metered() as used:
        found = load.measure(server.url, server.model, prompts, plan, new_tokens=new_tokens)
    told = {name: {share: found.percentile(name, share) for share in load.SHARES} for name in PERCENTILES}
    tokens = sum(call.tokens for call in found.good)
    return {
        "clients": clients, "requests": requests, "failed": found.failed, "seconds": found.seconds, "tokens": tokens,
        "prompt_tokens": sum(call.prompt_tokens for call in found.good), "tokens_per_second": found.tokens_per_second,
        "percentiles": told, "samples": {name: found.samples(name) for name in ("ttft", "tpot", "latency")},
        "joules_a_token": used.a_token(tokens), "joules_a_request": used.a_token(len(found.good)),
        "others": around.others, "machine": machine.describe()["cpu"], "threads": machine.threads(),
    }  # fmt: skip


@contextlib.contextmanager
def crowded(count: int) -> Iterator[None]:
    """Context in which `count` other processes compute all the time, at the priority of this one."""
    spinning = [subprocess.Popen([sys.executable, "-S", "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for each in spinning:
            each.kill()
            each.wait()


def ratios(rows: Sequence[dict], ours: str = "thimble") -> list[dict]:
    """A row for each other server and number of clients of `rows` as `kept` gives them: ours beside theirs.

    tokens: how many times as many tokens a second `ours` gives, the median over the rounds that both have, with a
    bootstrap interval where there are several. ttft: likewise the 99th percentile of the time to the first token; below
    1 is sooner.
    """
    by_place = {(each["server"], each["clients"], each["round"]): each for each in rows if each["tokens"]}
    pairs: dict[tuple, list[tuple[dict, dict]]] = {}
    for (server, clients, turn), theirs in by_place.items():
        if server != ours and (own := by_place.get((ours, clients, turn))) is not None:
            pairs.setdefault((clients, server), []).append((own, theirs))
    found = []
    for (clients, server), some in sorted(pairs.items()):
        row = {"clients": clients, "beside": server, "rounds": len(some)}
        tokens = [own["tokens_per_second"] / theirs["tokens_per_second"] for own, theirs in some]
        first = [own["percentiles"]["ttft"]["99"][0] / theirs["percentiles"]["ttft"]["99"][0] for own, theirs in some]
        for name, values in (("tokens", tokens), ("ttft", first)):
            stderr = bootstrap(values, np.median)
            score = Score(float(np.median(values)), stderr, len(values), "ratio", name == "tokens")
            row |= {name: score.value, f"{name} interval": score.interval}
        found.append(row)
    return found


def kept(folder: Path) -> list[dict]:
    """The rows in a folder, round by round."""
    found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("load-*.json"))]
    return sorted(found, key=lambda each: (each["round"], each["server"], each["clients"]))


def _place(folder: Path, turn: int, name: str, clients: int) -> Path:
    return folder / f"load-{turn}-{_plain(name)}-{clients}.json"


def _plain(name: str) -> str:
    return "".join(each if each.isalnum() or each in "._" else "_" for each in name)


def check(folder: Path, setting: dict) -> None:
    """Note the setting of a measurement; ValueError with both values for a folder that holds another one."""
    path = folder / SETTING
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(setting))
        return
    before = json.loads(path.read_text())
    for name, value in json.loads(json.dumps(setting)).items():
        if before.get(name) != value:
            raise ValueError(
                f"{name}={value!r}, where {files.place(folder)} was measured with {before.get(name)!r}; rows of both "
                "cannot be compared; choose another folder."
            )


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = argparse.ArgumentParser(prog="python -m lib.peers.serving_speed", description=__doc__.splitlines()[0])
    made.add_argument("systems", nargs="+", metavar="KIND[=MODEL]", help=f"kinds: {', '.join(servers.KINDS)}")
    made.add_argument("--folder", type=Path, required=True, help="where rows are kept")
    made.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--requests", type=int, default=2, help="of each client")
    made.add_argument("--input-tokens", type=int, default=256)
    made.add_argument("--new-tokens", type=int, default=128)
    made.add_argument("--slots", type=int, help="answers at once; by default as many as there are clients")
    made.add_argument("--busy", type=int, default=0, help="other processes that want a core meanwhile")
    made.add_argument("--cache-bits", type=int, default=16, help="of keys and values of our server")
    made.add_argument("--text", default="packaged", help="of which prompts of --input-tokens are pieces")
    made.add_argument(
        "--task", help="whose prompts are asked as they are, up to --input-tokens long, instead of --text"
    )
    made.add_argument("--tokenizer", default=packaged.NAME, help="by whose tokens prompts are as long as asked")
    return made


def named(given: argparse.Namespace) -> dict[str, str]:
    """{kind: its model, "" where one is to be made} of the servers asked for.

    Raises ValueError for unknown kinds and one that is named twice, FileNotFoundError for what is not installed.
    """
    pairs = [pair.partition("=")[::2] for pair in given.systems]
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"{', '.join(given.systems)} name a kind twice; give each model of one a --folder of its own.")
    original, _ = models.find(given.tokenizer)
    for kind, model in pairs:
        servers.command(kind, model or original)
    return dict(pairs)


def commands(given: argparse.Namespace, systems: dict[str, str]) -> dict[str, servers.Command]:
    """{kind: how it is started}; makes the models that are not named, and tells what all of them are."""
    found, slots = {}, given.slots or max(given.clients)
    context = given.input_tokens + given.new_tokens + 64
    for kind, model in systems.items():
        path = Path(model) if model else serving_models.made(kind, given.tokenizer, given.folder / "models")
        own = {"cache_bits": given.cache_bits} if kind == "thimble" else {}
        found[kind] = servers.command(kind, path, slots=slots, context=context, **own)
        print(json.dumps({"server": kind, "model": str(path), "nats": serving_models.nats(path)}), flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a line a row; returns the exit status."""
    given = parser().parse_args(arguments)
    try:
        asked = named(given)
        check(given.folder, vars(given) | {"folder": None, "rounds": None, "systems": sorted(given.systems)})
        systems = commands(given, asked)
        asking = given.tokenizer, needed(given.clients, given.requests), given.input_tokens
        prompts = (
            load_prompts.of_task(given.task, *asking) if given.task else load_prompts.of_length(given.text, *asking)
        )
        how = {"clients": given.clients, "new_tokens": given.new_tokens, "requests": given.requests}
        with crowded(given.busy):
            rows = rounds(systems, given.folder, prompts, count=given.rounds, **how)
        for each in rows:
            print(json.dumps({name: value for name, value in each.items() if name not in ("samples", "percentiles")}))
        for each in ratios(rows):
            print(json.dumps(each))
    except (ValueError, FileNotFoundError) as error:
        print(f"serving_speed: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
