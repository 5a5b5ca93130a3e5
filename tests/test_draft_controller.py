"""The draft controller: drafts where it pays, and never far behind plain decoding, on a clock that the tests turn."""

import pytest
import torch

from lib import timing
from lib.decoding import draft_controller
from lib.decoding.draft_controller import DraftController
from lib.decoding.generate import generate
from lib.decoding.speculative import Speculative
from lib.decoding.verify import NOTHING, Drafter
from tests import tabular


class Timed(tabular.TabularSession):
    """A session in which a pass over k tokens takes `base` (1 + (k - 1) `each`) seconds of the tests' clock."""

    def __init__(self, each, **options):
        super().__init__(**options)
        self.each, self.base, self.now = each, 1.0, 0.0

    def extend(self, tokens, **options):
        self.now += self.base * (1 + (len(tokens) - 1) * self.each)
        return super().extend(tokens, **options)


@pytest.fixture
def timed(monkeypatch):
    def make(each, **options):
        session = Timed(each, **options)
        monkeypatch.setattr(timing, "clock", lambda: session.now)
        return session

    return make


def answer(session, wrong, controller, count=200, length=4):
    prompt = torch.tensor([0, 1, 2])
    plain = generate(session, prompt, new_tokens=count)
    drafter = tabular.Fixed([0, 1, 2, *plain.token_ids], length=length, wrong=wrong, vocabulary=5)
    found = generate(session, prompt, new_tokens=count, drafter=drafter, controller=controller)
    assert found.token_ids == plain.token_ids
    return plain.seconds, found


def test_costs_are_those_of_the_clock(timed):
    session = timed(0.25)
    costs = draft_controller.step_costs(session, lengths=(0, 1, 4), context=16, rounds=2)
    assert costs == pytest.approx({0: 1.0, 1: 1.25, 4: 2.0}) and session.length == 0
    found = DraftController(costs)
    assert found.cost(2) == pytest.approx(1.5) and found.cost(6) == pytest.approx(2.5)


@pytest.mark.parametrize("each", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("wrong", [0.0, 0.5, 0.9, 1.0])
def test_never_more_than_five_percent_slower(timed, each, wrong):
    session = timed(each)
    costs = draft_controller.step_costs(session, lengths=(0, 1, 2, 4), context=8, rounds=1)
    plain, found = answer(session, wrong, DraftController(costs))
    assert found.seconds <= 1.05 * plain


def test_what_pays_is_drafted_and_what_does_not_is_not(timed):
    session = timed(0.05)
    costs = draft_controller.step_costs(session, lengths=(0, 1, 2, 4), context=8, rounds=1)
    plain, found = answer(session, 0.0, DraftController(costs))
    assert found.seconds < 0.45 * plain
    session = timed(1.0)  # each drafted token costs as much as a step: nothing can be won
    costs = draft_controller.step_costs(session, lengths=(0, 1, 2, 4), context=8, rounds=1)
    plain, found = answer(session, 1.0, DraftController(costs))
    assert sum(step.drafted > 0 for step in found.steps) <= 0.05 * len(found.steps)


def test_costs_that_were_measured_wrongly_are_learned(timed):
    session = timed(1.0)
    plain, found = answer(session, 1.0, DraftController({0: 1.0, 4: 1.01}), count=400)
    assert found.seconds <= 1.05 * plain + 8
    late = sum(step.drafted for step in found.steps[200:])
    assert late < sum(step.drafted for step in found.steps[:200])


def test_bad_costs_are_refused():
    for costs in ({}, {0: 1.0}, {1: 1.0, 2: 1.0}, {0: 1.0, 1: 0.0}):
        with pytest.raises(ValueError, match="measure them with step_costs"):
            DraftController(costs)
    with pytest.raises(ValueError, match="slack=0"):
        DraftController({0: 1.0, 1: 1.0}, slack=0)


def test_plain_steps_measured_too_dear_pay_for_no_drafts(timed):
    session = timed(0.5)  # one drafted token costs half a step, and every draft is wrong
    found = DraftController({0: 1.3, 1: 1.31, 4: 1.4})
    for _ in range(4):  # whatever was learned from one answer serves the next
        plain, seen = answer(session, 1.0, found, count=64)
        assert seen.seconds <= 1.05 * plain
    assert found.costs[0] == 1.0


def test_time_of_fruitless_search_is_on_the_account(timed):
    session = timed(0.5)

    class Slow(Drafter):
        asked = 0

        def draft(self, token_ids, at_most=None):
            session.now, self.asked = session.now + 0.4, self.asked + 1
            return NOTHING

    drafter, prompt = Slow(), torch.tensor([0, 1, 2])
    plain = generate(session, prompt, new_tokens=100)
    found = generate(session, prompt, new_tokens=100, drafter=drafter, controller=DraftController({0: 1.0, 1: 1.02}))
    assert drafter.asked > 2 and found.seconds <= 1.05 * plain.seconds


def test_hopeless_drafts_become_rare(timed):
    session = timed(0.1)  # cheap enough that the account alone would let many through
    found, drafts = DraftController(draft_controller.step_costs(session, lengths=(0, 1, 4), context=8, rounds=1)), []
    for _ in range(6):
        _, seen = answer(session, 1.0, found, count=100)
        drafts.append(sum(step.drafted > 0 for step in seen.steps))
    assert max(drafts[1:]) <= 4
    plain, seen = answer(session, 0.0, found, count=400)  # text that can be copied is still noticed
    assert seen.seconds < 0.7 * plain


def test_a_machine_that_becomes_slower_is_noticed_among_drafts(timed):
    session = timed(0.9)  # drafts that are all right gain so little that a plain step is worth its place
    found = DraftController({0: 1.0, 1: 1.9, 4: 4.6})
    answer(session, 0.0, found, count=100)
    assert found.costs[0] == pytest.approx(1.0)
    session.base = 2.0
    answer(session, 0.0, found, count=100)
    assert found.costs[0] == pytest.approx(2.0)
    assert 7 < found.costs[4] <= 9.2  # on its way there, never beyond


def test_what_a_drafting_model_has_to_read_is_on_the_account(timed, monkeypatch):
    session = timed(0.05)
    drafting = Timed(0.05, seed=1)  # another table: it is nearly always wrong
    drafting.base = 0.3
    monkeypatch.setattr(timing, "clock", lambda: session.now + drafting.now)
    drafter = Speculative(drafting, draft_length=2)
    reading = draft_controller.reading_cost(drafter, context=40)
    assert reading == pytest.approx(0.3 * (1 + 39 * 0.05) / 40)
    costs = draft_controller.step_costs(session, drafter, lengths=(0, 1, 2), context=8, rounds=1)
    found = DraftController(costs, reading=reading)
    prompt = torch.randint(5, (400,), generator=torch.Generator().manual_seed(0))
    for count in (30, 300):
        plain = generate(session, prompt, new_tokens=count)
        seen = generate(session, prompt, new_tokens=count, drafter=drafter, controller=found)
        assert seen.token_ids == plain.token_ids
        assert seen.seconds <= 1.05 * plain.seconds
        assert seen.prefill_seconds > plain.prefill_seconds  # the drafting model has read the prompt there
    assert any(step.drafted for step in seen.steps)


def test_the_longer_a_drafter_has_to_read_the_less_is_drafted():
    found = DraftController({0: 1.0, 4: 1.2}, reading=0.1)
    found.balance = 2.0
    assert found.longest(4) == found.longest(4, unread=10) == 4
    assert found.longest(4, unread=20) == 0


def test_the_account_goes_over_all_answers():
    found = DraftController({0: 1.0, 4: 1.5})
    found.record(4, 4, 1.5)
    assert found.balance == pytest.approx(5 * 1.03 - 1.5)
    found.start()
    assert found.balance == draft_controller.CREDIT
    for _ in range(9):
        found.record(4, 0, 1.5)
    debt = found.balance
    found.start()
    assert found.balance == debt < 0 and found.longest(4) == 0
