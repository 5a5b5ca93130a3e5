"""The load meter on a clock that stands still but for what is waited for: every number is known beforehand."""

import asyncio
import json
import random
import selectors

import httpx
import numpy as np
import pytest

from lib import timing
from lib.metrics import load, schedules
from tests import served

FIRST, BETWEEN = 0.05, 0.003  # seconds of the stand-in server


class Still(selectors.SelectSelector):
    """Moves a loop's time on by what it would wait, without waiting."""

    now = 0.0

    def select(self, timeout=None):
        Still.now += timeout or 0.0
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    def __init__(self):
        super().__init__(Still())

    def time(self):
        return Still.now


class Server(httpx.AsyncBaseTransport):
    """Answers with known delays, `slots` at a time; it does nothing at all for `stall` seconds from `at`."""

    def __init__(self, *, slots=1000, at=None, stall=0.0, fail=()):
        self.slots, self.at, self.stall, self.fail, self.seen = asyncio.Semaphore(slots), at, stall, fail, []

    async def handle_async_request(self, request):
        body, place = json.loads(request.content), len(self.seen)
        self.seen.append((timing.clock(), body))
        if place in self.fail:
            return httpx.Response(429)
        return httpx.Response(200, stream=_Stream(self, body))


class _Stream(httpx.AsyncByteStream):
    def __init__(self, server, body):
        self.server, self.body = server, body

    async def __aiter__(self):
        server = self.server
        async with server.slots:
            for place in range(self.body["max_tokens"]):
                await asyncio.sleep(BETWEEN if place else FIRST)
                if server.at is not None and server.at <= timing.clock() < server.at + server.stall:
                    await asyncio.sleep(server.at + server.stall - timing.clock())
                yield b"data: " + json.dumps({"choices": [{"text": "x"}]}).encode() + b"\n\n"
        used = {"completion_tokens": self.body["max_tokens"], "prompt_tokens": 3}
        yield b"data: " + json.dumps({"choices": [], "usage": used}).encode() + b"\n\ndata: [DONE]\n\n"


@pytest.fixture
def ask(monkeypatch):
    """`load.measure` on the clock that stands still."""
    Still.now = 0.0
    monkeypatch.setattr(timing, "clock", lambda: Still.now)
    monkeypatch.setattr(asyncio, "run", lambda work: asyncio.Runner(loop_factory=Loop).__enter__().run(work))
    return lambda schedule, server=None, tokens=8, **more: load.measure(
        "http://a/v1", "m", ["one", "two"], schedule, new_tokens=tokens, transport=server or Server(), **more
    )


def test_known_delays_are_read_to_the_digit(ask):
    found = ask(schedules.poisson(3.0, 40))
    assert len(found.good) == 40 and found.failed == {}
    for name, wanted in (("ttft", FIRST), ("tpot", BETWEEN), ("itl", BETWEEN), ("latency", FIRST + 7 * BETWEEN)):
        for share in load.SHARES:
            assert found.percentile(name, share) == pytest.approx((wanted,) * 3)
    assert len(found.samples("itl")) == 40 * 7
    row = found.table()
    assert row["ttft p99 ms"] == pytest.approx(50) and row["failed"] == 0 and row["load"] == "Poisson, 3 a second"
    assert found.tokens_per_second == pytest.approx(40 * 8 / found.seconds)
    assert found.mfu(2e6, 1e9) == pytest.approx(40 * (8 + 3) * 2e6 / found.seconds / 1e9) and found.mfu(1, None) is None
    assert found.mbu(1e6, 8, 1e9) == pytest.approx(8e6 / found.seconds / 1e9) and found.mbu(1, 1, None) is None


def test_clients_wait_for_their_answers(ask):
    server = Server()
    found = ask(schedules.closed(4, 12), server)
    each = FIRST + 7 * BETWEEN
    assert found.seconds == pytest.approx(3 * each) and found.requests_per_second == pytest.approx(12 / found.seconds)
    assert [at for at, _ in server.seen] == pytest.approx([0] * 4 + [each] * 4 + [2 * each] * 4)
    assert {body["prompt"] for _, body in server.seen} == {"one", "two"}
    assert server.seen[0][1]["stream_options"] == {"include_usage": True}


def test_a_stall_is_charged_to_every_request_that_was_due(ask):
    """A closed loop sees one slow answer; an open loop sees all that would have come meanwhile."""
    stalled = {"at": 1.0, "stall": 2.0}
    opened = ask(schedules.bursts(20.0, 1, 100), Server(**stalled))
    late = [call.ttft for call in opened.good if call.ttft > 0.1]
    assert len(late) == pytest.approx(2.0 * 20, abs=2) and max(late) > 1.9
    Still.now = 0.0
    one = ask(schedules.closed(1, 100), Server(**stalled))
    assert sum(call.latency > 0.1 for call in one.good) == 1
    assert opened.percentile("ttft", 90)[0] > 10 * one.percentile("ttft", 90)[0]


def test_a_queue_is_part_of_the_time_to_the_first_token(ask):
    found = ask(schedules.bursts(1.0, 3, 3), Server(slots=1))
    each = FIRST + 7 * BETWEEN
    assert sorted(call.ttft for call in found.good) == pytest.approx([FIRST, each + FIRST, 2 * each + FIRST])
    assert found.goodput(ttft=FIRST + 1e-9, tpot=1.0) == pytest.approx(1 / found.seconds)
    assert found.goodput(ttft=1.0, tpot=BETWEEN / 2) == 0


def test_failures_are_counted_and_not_tried_again(ask):
    server = Server(fail={1, 3})
    found = ask(schedules.closed(1, 5), server)
    assert found.failed == {"status 429": 2} and len(found.good) == 3 and len(server.seen) == 5
    assert ask(schedules.closed(1, 2), Server(fail={0, 1})).percentile("ttft", 50)[0] != 0


def test_intervals_hold_the_percentile_as_often_as_they_say():
    draw, held = np.random.default_rng(0), 0
    for seed in range(25):
        calls = [load.Call(0.0, 0.0, [value], 1) for value in draw.exponential(size=80)]
        found = load.Measured(schedules.closed(1, 80), calls, 1.0)
        _, low, high = found.percentile("ttft", 50, seed=seed)
        held += low <= np.log(2) <= high
    assert 20 <= held <= 25


def test_times_are_drawn_and_replayed():
    times = schedules.poisson(5.0, 4000, seed=1).times
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(0.2, rel=0.06) and gaps.std() == pytest.approx(0.2, rel=0.08)
    assert times == schedules.poisson(5.0, 4000, seed=1).times != schedules.poisson(5.0, 4000, seed=2).times
    assert schedules.bursts(2.0, 4, 8).times == (0, 0, 0, 0, 2, 2, 2, 2)
    assert schedules.replay([3.0, 4.5]).times == (0.0, 1.5)
    for wrong in (lambda: schedules.poisson(0, 5), lambda: schedules.closed(1, 0), lambda: schedules.replay([2, 1])):
        with pytest.raises(ValueError):
            wrong()


def test_our_own_server_is_measured():
    prompts = [random.Random(seed).choices(range(256), k=9) for seed in range(4)]
    with served.running(served.artifact()) as server:
        url = f"{server.base_url}/v1"
        found = load.measure(url, "tiny", prompts, schedules.closed(3, 12), new_tokens=5)
        assert found.failed == {} and {call.tokens for call in found.calls} == {5}
        assert {call.prompt_tokens for call in found.calls} == {9} and found.tokens_per_second > 0
        assert load.measure(url, "other", prompts, schedules.closed(1, 1), new_tokens=5).failed == {"status 404": 1}
