"""Serve a model:  python -m lib.serving MODEL [MODEL ...] [--port 8000]

A model is a packaged name, a folder or a Hub id; several are offered by name, each loaded when it is first asked for.
"""

import argparse
import os
import sys
import threading
from functools import partial

import uvicorn

from lib.serving import artifacts
from lib.serving.app import build
from lib.serving.hall import Hall
from lib.serving.limits import Limits
from lib.serving.listener import bind
from lib.sources import packaged

LOCAL = ("127.0.0.1", "localhost", "[::1]", "::1")
KEY = "THIMBLE_API_KEY"


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; returns the exit status."""
    given = parser().parse_args(arguments)
    try:
        return serve(given)
    except (ValueError, FileNotFoundError, MemoryError, OSError) as error:
        print(f"serving: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = argparse.ArgumentParser(prog="python -m lib.serving", description=__doc__.splitlines()[0])
    defaults = Limits()
    made.add_argument("models", nargs="*", default=[packaged.NAME], metavar="MODEL")
    made.add_argument("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0 for every one")
    made.add_argument("--port", type=int, default=8000)
    made.add_argument("--api-key", default=os.environ.get(KEY), help=f"what clients must send; also {KEY}")
    made.add_argument("--allow-host", action="append", default=[], help="a name that clients may call this server by")
    made.add_argument("--embedding-bits", type=int, help="round a 16-bit embedding to so many bits (default: leave it)")
    made.add_argument("--lookup", action="store_true", help="draft from the text itself where that was seen to pay")
    made.add_argument("--slots", type=int, default=defaults.slots, help="answers at once")
    made.add_argument("--queue", type=int, default=defaults.queue, help="requests that may wait; more get status 429")
    made.add_argument("--max-input-tokens", type=int, help="of a prompt")
    made.add_argument("--max-total-tokens", type=int, help="of a prompt and its answer")
    made.add_argument("--cache-mb", type=int, default=defaults.cache_bytes >> 20, help="keys and values, in MiB")
    made.add_argument("--memory-mb", type=int, help="weights of all models at once, in MiB; the oldest is let go")
    made.add_argument("--cache-bits", type=int, default=16, help="of keys and values: 16, 8 or 4 (default 16)")
    made.add_argument("--max-body-bytes", type=int, default=defaults.body_bytes)
    made.add_argument("--seconds", type=float, default=defaults.seconds, help="that an answer may take")
    made.add_argument("--rate", type=int, default=defaults.rate, help="requests a minute from one address; 0: any")
    made.add_argument("--grace", type=float, default=30, help="seconds that answers may go on after SIGTERM")
    return made


def serve(given: argparse.Namespace) -> int:
    """Bind, load the first model, and answer until a signal."""
    limits = Limits(
        slots=given.slots, queue=given.queue, input_tokens=given.max_input_tokens, total_tokens=given.max_total_tokens,
        cache_bytes=given.cache_mb << 20, body_bytes=given.max_body_bytes, seconds=given.seconds, rate=given.rate,
    )  # fmt: skip
    listener = bind(given.host, given.port)  # before the model is loaded, which takes a while
    names = {artifacts.called(name): name for name in given.models}
    if len(names) < len(given.models):
        raise ValueError(
            f"{len(given.models)} models with {len(names)} names; each needs one of its own; rename a folder."
        )
    load = partial(
        artifacts.load, limits=limits, embedding_bits=given.embedding_bits, lookup=given.lookup,
        cache_bits=given.cache_bits,
    )  # fmt: skip
    hall = Hall(names, load, limits, memory=given.memory_mb and given.memory_mb << 20)
    first = load(given.models[0])
    hall.offer(first)
    local = given.host in LOCAL
    app = build(hall, key=given.api_key, hosts=(*LOCAL, *given.allow_host) if local else tuple(given.allow_host))
    shown = f"{first.name}, {first.dtype}, {first.nbytes / 1e6:,.0f} MB; {limits.slots} at once, context {first.limit}"
    print(f"serving {shown}\nhttp://{given.host}:{listener.getsockname()[1]}", flush=True)
    if not local and not given.api_key:
        print(
            "serving: anybody who reaches this address may ask; --api-key asks for a key", file=sys.stderr, flush=True
        )
    # more connections than requests are allowed, so that one too many is told so; but not any number of them
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=given.grace + 5, h11_max_incomplete_event_size=32768,
        limit_concurrency=limits.slots + limits.queue + 256,
    )  # fmt: skip
    Server(config, hall, given.grace).run(sockets=[listener])
    return 0


class Server(uvicorn.Server):
    """A server that, on a signal, begins nothing new, and ends what is still under way after `grace` seconds."""

    def __init__(self, config: uvicorn.Config, hall: Hall, grace: float):
        super().__init__(config)
        self.hall, self.grace = hall, grace

    def handle_exit(self, sig, frame) -> None:
        """SIGTERM or SIGINT; a second one ends all answers at once."""
        if self.hall.stopping:
            self.hall.end()
        else:
            self.hall.stop()
            timer = threading.Timer(self.grace, self.hall.end)
            timer.daemon = True
            timer.start()
        self.should_exit = True


if __name__ == "__main__":
    sys.exit(main())
