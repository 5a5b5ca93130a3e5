"""The stopwatch under a pretended clock: what is timed, in which order, and what is done with the numbers."""

import gc

import pytest
import torch
from torch import nn

from lib import runtime, timing
from lib.metrics import speed
from lib.metrics.score import Score
from tests import tiny


class Clock:
    """A clock that moves only when a model says so, and notes what happened."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now


class Timed(nn.Module):
    """A tiny Llama whose forward passes take a pretended time: `seconds(kind, count)` for prompt and further tokens."""

    def __init__(self, name, clock, seconds):
        super().__init__()
        self.inner, self.name, self.clock, self.seconds, self.count = tiny.llama(), name, clock, seconds, 0
        self.config = self.inner.config

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids, **kwargs):
        assert not gc.isenabled() and not torch.is_grad_enabled() and not self.training
        kind = "prompt" if input_ids.shape[1] > 1 else "token"
        if kind == "prompt":
            self.count += 1
            self.clock.log.append((self.name, tuple(map(tuple, input_ids.tolist()))))
        assert kwargs["past_key_values"].get_seq_length() == 0 or kind == "token"
        self.clock.now += self.seconds(kind, self.count)
        return self.inner(input_ids, **kwargs)


def steady(prompt, token):
    return lambda kind, count: prompt if kind == "prompt" else token


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(timing, "clock", made)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # takes a tenth of a second each time
    return made


def test_prefill_and_decode_are_timed_apart(clock):
    systems = {"original": Timed("original", clock, steady(2.0, 0.5)), "small": Timed("small", clock, steady(1.0, 0.1))}
    measured = speed.measure(systems, prompt=16, new_tokens=5, batch=3, rounds=4)
    values = {system: {name: score.value for name, score in scores.items()} for system, scores in measured.items()}
    assert values["original"] == pytest.approx({"ttft": 2.0, "tpot": 0.5, "prefill": 24.0, "decode": 6.0})
    assert values["small"] == pytest.approx({"ttft": 1.0, "tpot": 0.1, "prefill": 48.0, "decode": 30.0})
    score = measured["small"]["decode"]
    assert (score.n, score.unit, score.higher_is_better) == (4, "tokens/s", True)
    assert measured["small"]["ttft"].unit == "s" and measured["small"]["ttft"].higher_is_better is False


def test_systems_are_interleaved_after_their_warm_up(clock):
    systems = {name: Timed(name, clock, steady(1.0, 1.0)) for name in "AB"}
    measured = speed.measure(systems, prompt=4, new_tokens=2, rounds=3)
    assert measured.warmups == {"A": 2, "B": 2}
    assert "".join(name for name, _ in clock.log) == "AABB" + "ABABAB"
    assert len({prompt for _, prompt in clock.log}) == 1  # every run sees the same prompt


def test_warm_up_goes_on_until_two_runs_agree(clock):
    settling = Timed("A", clock, lambda kind, count: {1: 9.0, 2: 3.0}.get(count, 1.0))
    never = Timed("B", clock, lambda kind, count: 2.0**count)
    measured = speed.measure({"A": settling, "B": never}, prompt=4, new_tokens=2, rounds=1)
    assert measured.warmups == {"A": 4, "B": speed.WARMUPS}
    assert measured["A"]["ttft"].value == 1.0


def test_medians_ignore_one_disturbed_round(clock):
    disturbed = Timed("A", clock, lambda kind, count: 50.0 if count == 4 else 1.0)
    measured = speed.measure({"A": disturbed}, prompt=4, new_tokens=3, rounds=5)
    assert measured["A"]["tpot"].value == 1.0
    assert measured.samples["A"]["tpot"] == [1.0, 50.0, 1.0, 1.0, 1.0]
    low, high = measured.spread("A", "tpot")
    assert low == 1.0 and 25 < high < 50
    assert measured["A"]["tpot"].stderr > 0


def test_prompts_depend_on_the_seed_alone(clock):
    systems = {"A": Timed("A", clock, steady(1.0, 1.0))}
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        speed.measure(systems, prompt=8, new_tokens=2, rounds=1, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    prompts = [prompt for _, prompt in clock.log]
    assert len(set(prompts)) == 2 and prompts[0] == prompts[3] != prompts[-1]
    assert all(0 <= token < 256 for prompt in prompts for token in prompt[0])


def test_a_run_generates_what_transformers_generates():
    model, tokens, seen = tiny.llama(), tiny.tokens(2, 12), []
    forward = model.forward
    model.forward = lambda **kwargs: seen.append(kwargs["input_ids"].clone()) or forward(**kwargs)
    speed.run(model, tokens, 6)
    fed = torch.cat(seen[1:], 1)
    model.forward = forward
    expected = model.generate(tokens, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(fed, expected[:, 12:-1])  # the last token is chosen and not fed


def test_a_session_is_an_arm_and_begins_anew():
    packed_model = runtime.pack_(tiny.llama(), embedding_bits=None)
    session, tokens = runtime.Session(packed_model), torch.arange(9)[None]
    session.extend([5, 6, 7])
    speed.run(session, tokens, 4)
    assert session.length == 9 + 3
    measured = speed.measure({"own": tiny.llama(), "packed": session}, prompt=8, new_tokens=3, rounds=2)
    assert set(measured) == {"own", "packed"} and measured["packed"]["decode"].value > 0
    with pytest.raises(ValueError, match="batch=2 with a session"):
        speed.measure({"packed": session}, prompt=8, new_tokens=3, batch=2)


def test_gc_and_modes_are_left_as_found(clock):
    model = Timed("A", clock, steady(1.0, 1.0)).train()
    speed.measure({"A": model}, prompt=4, new_tokens=2, rounds=1)
    assert gc.isenabled() and model.training
    gc.disable()
    try:
        speed.seconds(lambda: None, rounds=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_ratio_compares_within_rounds(clock):
    # the machine halves its speed after the third prompt; the ratio stays three all the same
    slow = lambda kind, count: 3.0 * (1 if count <= 3 else 2)  # noqa: E731
    fast = lambda kind, count: 1.0 * (1 if count <= 3 else 2)  # noqa: E731
    systems = {"original": Timed("original", clock, slow), "small": Timed("small", clock, fast)}
    measured = speed.measure(systems, prompt=4, new_tokens=3, rounds=4)
    assert measured["original"]["tpot"].stderr > 0
    faster = speed.ratio(measured, "small", "original")
    assert (faster.value, faster.stderr, faster.n, faster.baseline) == (pytest.approx(3.0), pytest.approx(0), 4, 1.0)
    assert faster.higher_is_better is True
    assert speed.ratio(measured, "small", "original", "ttft").value == pytest.approx(1 / 3)


def test_ratio_of_something_not_measured_is_refused(clock):
    measured = speed.measure({"original": Timed("A", clock, steady(1.0, 1.0))}, prompt=4, new_tokens=2, rounds=1)
    with pytest.raises(KeyError, match="did you mean 'original'"):
        speed.ratio(measured, "orignal", "original")
    with pytest.raises(KeyError, match="'speed' was not measured"):
        speed.ratio(measured, "original", "original", "speed")


@pytest.mark.parametrize("wrong", [{"prompt": 0}, {"new_tokens": 1}, {"batch": 0}, {"rounds": 0}])
def test_counts_that_are_too_small_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*choose a whole number from"):
        speed.measure({"A": tiny.llama()}, **wrong)


def test_no_arms_are_refused():
    with pytest.raises(ValueError, match="no systems to measure"):
        speed.measure({})


def test_seconds_times_calls_after_warming_up(clock):
    taken = iter([100.0, 1.0, 2.0, 9.0])

    def work(factor, *, plus):
        clock.now += factor * next(taken) + plus

    score = speed.seconds(work, 2, plus=1, rounds=3)
    assert (score.value, score.n, score.unit, score.higher_is_better) == (5.0, 3, "s", False)
    with pytest.raises(ValueError, match="rounds=0"):
        speed.seconds(work, rounds=0)


def test_stopwatch_stops_at_an_error_too(clock):
    with timing.stopwatch() as watch:
        clock.now += 1.5
    assert watch.seconds == 1.5 and speed.once(watch) == Score(1.5, None, 1, "s", False)
    with pytest.raises(RuntimeError), timing.stopwatch() as watch:
        clock.now += 2.5
        raise RuntimeError
    assert watch.seconds == 2.5


def test_the_clock_waits_for_the_device(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("empty"))
    monkeypatch.setattr(timing, "clock", lambda: float(len(events)) if events.append("clock") is None else 0)
    speed.seconds(lambda: events.append("work"), rounds=1, warmups=0)
    assert events == ["empty", "synchronize", "clock", "work", "synchronize", "clock"]


def test_utilisation_by_hand_and_unknown_peaks():
    prefill, tpot = Score(100.0, 5.0, 3, "tokens/s", True), Score(0.02, 0.001, 3, "s", False)
    used = speed.mfu(prefill, flops_per_token=1e9, peak=4e11)
    assert (used.value, used.stderr, used.n) == (0.25, 0.0125, 3)
    used = speed.mbu(tpot, bytes_per_token=2e8, bandwidth=2e10)
    assert (used.value, used.stderr) == (pytest.approx(0.5), pytest.approx(0.025))
    assert speed.mfu(prefill, 1e9, None) is None and speed.mbu(tpot, 2e8, None) is None
    assert speed.mbu(Score(0.02, None, 1, "s", False), 2e8, 2e10).stderr is None
