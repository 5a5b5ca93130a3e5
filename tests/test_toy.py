"""Preferences among a few answers: optima in closed form, and who runs away where one answer always wins."""

import pytest
import torch

from lib.alignment import toy
from lib.trainers.preferences import Options

REFERENCE = torch.tensor([0.4, -0.3, 0.0, 0.8])


@pytest.mark.parametrize(("name", "rate"), [("dpo", 60.0), ("ipo", 0.7)])
def test_optima_in_closed_form(name, rate):
    wins = toy.bradley_terry(torch.tensor([0.5, -0.2, 0.1, 0.0], dtype=torch.float64))
    found = toy.learn(name, REFERENCE, wins, Options(beta=0.3), steps=600, rate=rate)
    wanted = toy.optimum(name, REFERENCE, wins, 0.3)
    torch.testing.assert_close(found[-1], wanted, atol=1e-4, rtol=0)
    if name == "dpo":
        rewards = REFERENCE.double() + torch.tensor([0.5, -0.2, 0.1, 0.0]).double() / 0.3
        torch.testing.assert_close(wanted, rewards.log_softmax(-1))


def test_dpo_runs_away_where_one_answer_always_wins_and_ipo_stays():
    wins, reference = toy.certain(2), torch.zeros(2)
    margins = {
        name: (found := toy.learn(name, reference, wins, Options(beta=0.5), steps=600, rate=rate))[:, 0] - found[:, 1]
        for name, rate in (("dpo", 4.0), ("ipo", 0.2), ("kto", 4.0), ("hinge", 4.0))
    }
    assert margins["ipo"][-1] == pytest.approx(toy.widest(0.5), abs=1e-4) == 1
    dpo = margins["dpo"]
    assert dpo[-1] > 8 and dpo[-1] - dpo[300] > 0.5  # and still on its way
    assert margins["hinge"][-1] >= 1 / 0.5 - 1e-9 and margins["hinge"][-1] == margins["hinge"][-2]  # it stops
    assert toy.optimum("dpo", reference, wins, 0.5) is None
    assert toy.divergence(torch.stack([reference.log_softmax(-1)] * 2)).tolist() == [0, 0]


def test_losses_without_a_reference_learn_the_order():
    wins = toy.certain(3)
    for name in ("simpo", "orpo", "kto"):
        found = toy.learn(name, torch.zeros(3), wins, Options(beta=1.0), steps=200, rate=1.0)[-1]
        assert found[0] > found[1] > found[2], name
    with pytest.raises(ValueError, match="the optimum is known of dpo and ipo"):
        toy.optimum("kto", torch.zeros(3), wins, 0.1)
