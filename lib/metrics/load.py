"""Load on a server: clients that ask over HTTP, and what their answers took.

    found = load.measure("http://127.0.0.1:8000/v1", "my-model", prompts, schedules.poisson(2.0, 100), new_tokens=128)
    found = load.measure("http://127.0.0.1:8000/v1", "my-model", prompts, schedules.closed(16, 100), new_tokens=128)

An open loop sends at times that were drawn before, whether or not earlier answers have come, and its latencies count
from those times: a server that stalls is charged for every request that had to wait (no coordinated omission, Tene,
"How not to measure latency", 2013). A closed loop keeps so many clients busy, each of which waits for its answer; it
says what a server gives at that concurrency, and nothing about a rate.

The interface is OpenAI's streamed completions, which every server here has. Times are of this machine's clock; a chunk
that carries no text counts as no token.
"""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import httpx
import numpy as np

from lib import timing
from lib.metrics.schedules import Schedule, positive

SHARES = (50, 90, 99)  # percentiles
DRAWS = 200  # of the bootstrap


@dataclass
class Call:
    """One request: when it was due and sent, when its tokens came, how many, and what went wrong. Times in seconds."""

    due: float
    sent: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Time to the first token, from when the request was due."""
        return self.arrivals[0] - self.due

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None for answers of one token."""
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def latency(self) -> float:
        """Until the last token, from when the request was due."""
        return self.arrivals[-1] - self.due


@dataclass(frozen=True)
class Measured:
    """A load and its calls.

    seconds: from the first request that was due to the last token of all.
    """

    schedule: Schedule
    calls: list[Call]
    seconds: float

    @property
    def good(self) -> list[Call]:
        """Calls that were answered."""
        return [call for call in self.calls if call.error is None and call.arrivals]

    @property
    def failed(self) -> dict[str, int]:
        """How many calls failed, by what was said."""
        found: dict[str, int] = {}
        for call in self.calls:
            if call.error is not None or not call.arrivals:
                found[call.error or "no token"] = found.get(call.error or "no token", 0) + 1
        return found

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all answers over the seconds of the whole load."""
        return sum(call.tokens for call in self.good) / self.seconds

    @property
    def requests_per_second(self) -> float:
        """Answers over the seconds of the whole load."""
        return len(self.good) / self.seconds

    def samples(self, name: str) -> list[float]:
        """Seconds of each call ("ttft", "tpot", "latency"), or between any two tokens of one answer ("itl")."""
        if name == "itl":
            return [later - sooner for call in self.good for sooner, later in pairwise(call.arrivals)]
        return [value for call in self.good if (value := getattr(call, name)) is not None]

    def percentile(self, name: str, share: float, *, seed: int = 0) -> tuple[float, float, float]:
        """(value, low, high) in seconds: a percentile and its 95 % interval, over draws of whole calls.

        Tokens of one answer depend on one another, so calls are drawn and not tokens. NaN without calls.
        """
        groups = _groups(self, name)
        if not groups:
            return float("nan"), float("nan"), float("nan")
        value, draw = float(np.percentile(np.concatenate(groups), share)), np.random.default_rng(seed)
        drawn = [
            np.percentile(np.concatenate([groups[n] for n in draw.integers(len(groups), size=len(groups))]), share)
            for _ in range(DRAWS)
        ]
        low, high = np.percentile(drawn, (2.5, 97.5))
        return value, float(low), float(high)

    def goodput(self, *, ttft: float, tpot: float) -> float:
        """Answers a second that kept both limits [s]; DistServe, arXiv 2401.09670, section 2."""
        kept = [call for call in self.good if call.ttft <= ttft and (call.tpot or 0.0) <= tpot]
        return len(kept) / self.seconds

    def mfu(self, flops_per_token: float, peak: float | None) -> float | None:
        """FLOP of all tokens that were read and written, over those of a machine whose peak is `peak` FLOP/s."""
        tokens = sum(call.prompt_tokens + call.tokens for call in self.good)
        return None if peak is None else tokens * flops_per_token / self.seconds / peak

    def mbu(self, bytes_a_step: float, steps: int, bandwidth: float | None) -> float | None:
        """Bytes that `steps` passes over the weights read, over those that memory gives at `bandwidth` bytes/s."""
        return None if bandwidth is None else steps * bytes_a_step / self.seconds / bandwidth

    def table(self) -> dict[str, float | int | str]:
        """One row: throughput, percentiles in milliseconds, and how many failed."""
        row: dict[str, float | int | str] = {"load": self.schedule.name, "requests": len(self.calls)}
        row |= {"failed": sum(self.failed.values()), "tokens/s": self.tokens_per_second}
        for name in ("ttft", "tpot", "itl", "latency"):
            row |= {f"{name} p{share} ms": 1000 * self.percentile(name, share)[0] for share in SHARES}
        return row


def measure(
    url: str,
    model: str,
    prompts: Sequence,
    schedule: Schedule,
    *,
    new_tokens: int,
    key: str | None = None,
    seconds: float = 600.0,
    transport: httpx.AsyncBaseTransport | None = None,
    **parameters,
) -> Measured:
    """Send `schedule.count` requests for `new_tokens` greedy tokens each; `prompts` (texts or token ids) take turns.

    url: such as "http://localhost:8000/v1". seconds: after which a request counts as failed. parameters: sent with each
    request. Failures are counted, and nothing is tried again. Runs also beside a running event loop, as in notebooks.
    """
    positive(new_tokens=new_tokens, prompts=len(prompts))
    body = {"model": model, "max_tokens": new_tokens, "temperature": 0, "stream": True}
    body |= {"stream_options": {"include_usage": True}} | parameters
    return _run(_all(url.rstrip("/"), body, prompts, schedule, key, seconds, transport))


def at_once(url: str, bodies: Sequence[dict], *, seconds: float = 600.0) -> list[dict]:
    """The JSON answers to requests that are sent to `url` all at once, in their order. Raises httpx's errors."""

    async def work() -> list[dict]:
        async with httpx.AsyncClient(**_how(url, seconds)) as client:
            answers = await asyncio.gather(*(client.post(url, json=body) for body in bodies))
        return [answer.raise_for_status().json() for answer in answers]

    return _run(work())


def _run(work):
    """The result of a coroutine, also where an event loop runs already, as in notebooks."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def _all(url, body, prompts, schedule, key, seconds, transport) -> Measured:
    how = _how(url, seconds) | {"headers": {"Authorization": f"Bearer {key}"} if key else {}, "transport": transport}
    async with httpx.AsyncClient(**how) as client:
        begun, calls = timing.clock(), []

        async def ask(place: int, due: float) -> None:
            calls.append(call := Call(due))
            await _one(client, url, {**body, "prompt": prompts[place % len(prompts)]}, call)

        if schedule.times is not None:
            await asyncio.gather(*(_later(ask, place, begun + at) for place, at in enumerate(schedule.times)))
        else:
            left = iter(range(schedule.count))
            await asyncio.gather(*(_again(ask, left) for _ in range(schedule.clients)))
    ends = [call.arrivals[-1] for call in calls if call.arrivals]
    return Measured(schedule, calls, max(ends or [timing.clock()]) - begun)


def _how(url: str, seconds: float) -> dict:
    limits, secure = httpx.Limits(max_connections=None, max_keepalive_connections=0), url.startswith("https:")
    return {"limits": limits, "timeout": seconds, "trust_env": False, "verify": secure}  # reading certificates is slow


async def _later(ask, place: int, due: float) -> None:
    while (wait := due - timing.clock()) > 0:
        await asyncio.sleep(wait)
    await ask(place, due)


async def _again(ask, left) -> None:
    for place in left:
        await ask(place, timing.clock())


async def _one(client: httpx.AsyncClient, url: str, body: dict, call: Call) -> None:
    call.sent, rest = timing.clock(), ""
    try:
        async with client.stream("POST", f"{url}/completions", json=body) as answer:
            if answer.status_code != 200:
                call.error = f"status {answer.status_code}"
                return
            async for part in answer.aiter_text():
                now, rest = timing.clock(), rest + part
                *lines, rest = rest.split("\n\n")
                for line in lines:
                    _take(line, now, call)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        call.error = type(error).__name__
    call.tokens = call.tokens or len(call.arrivals)


def _take(line: str, now: float, call: Call) -> None:
    """One event of a stream."""
    if not line.startswith("data:") or line[5:].strip() == "[DONE]":
        return
    event = json.loads(line[5:])
    if event.get("error"):
        call.error = "an error in the stream"
    if any(choice.get("text") for choice in event.get("choices", ())):
        call.arrivals.append(now)
    if event.get("usage"):
        call.tokens, call.prompt_tokens = event["usage"]["completion_tokens"], event["usage"]["prompt_tokens"]


def _groups(found: Measured, name: str) -> list[np.ndarray]:
    if name == "itl":
        return [np.diff(call.arrivals) for call in found.good if len(call.arrivals) > 1]
    return [np.array([value]) for value in found.samples(name)]
