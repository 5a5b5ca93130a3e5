"""A loss that rises far above what it had reached is told at its step; noise and a fall are not."""

import random

import pytest

from lib.trainers import divergence, history, loop, next_token, shown
from tests import tiny


def falling(count, noise=0.1, seed=0):
    draw = random.Random(seed)
    return [4 + 4 * 0.9**step + draw.gauss(0, noise) for step in range(count)]


def test_a_rise_is_told_once_with_its_numbers_until_the_loss_is_back():
    losses = falling(60) + [7.0] * 10 + falling(60)[40:] + [3.0] * 8 + [9.0]
    found = divergence.rises(losses)
    assert len(found) == 2 and 61 < found[0].step < 66 and found[1].step == len(losses)
    first = found[0]
    assert first.lowest == pytest.approx(4, abs=0.15) and 40 < first.best <= 60
    assert first.level == pytest.approx(sum(losses[first.step - 8 : first.step]) / 8)
    assert f"up to {first.step} is {first.level:.4g} on average; it was {first.lowest:.4g} at step {first.best}" in str(
        first
    )


@pytest.mark.parametrize("losses", [falling(400), falling(100, noise=0.5), [5.0] * 40, falling(60) + [4.6] * 20, []])
def test_noise_and_a_fall_are_no_divergence(losses):
    assert not divergence.rises(losses)


def test_the_loop_tells_it_and_its_history_keeps_it(tmp_path, capsys):
    """Also where the training was stopped in between: the steps before it count."""

    class Rises:
        def __init__(self):
            self.steps, self.identity = 0, {"loss": "rises"}

        def __call__(self, model, batch):
            self.steps += 1
            return next_token.loss(model, batch) * (3 if self.steps > self.after else 1)

    options = {"steps": 16, "learning_rate": 1e-4, "batch": 2, "micro_batch": 2, "folder": tmp_path, "every": 0}
    for stop, after in ((10, 99), (None, 0)):
        loss = Rises()
        loss.after = after
        found = loop.train_(
            tiny.llama(num_hidden_layers=1), tiny.tokens(8, 16), loss, **options, stop=lambda done, at=stop: done == at
        )
    (rise,) = found.rises
    assert 10 < rise.step <= 16 and rise.best <= 10
    assert capsys.readouterr().out.count(str(rise)) == 1 and isinstance(found, history.History)


def test_what_is_shown_behind_the_bar(monkeypatch):
    model = tiny.llama(num_hidden_layers=1)
    monkeypatch.setattr(shown.peaks, "known", lambda device: None)
    assert shown.Shown(model, False).text(3.2149, 4000, 16, 0.5) == "loss 3.215, 8,000 tokens/s"
    known = shown.peaks.Peaks(1.0, {"float32": 1e9, "bfloat16": 4e9})
    monkeypatch.setattr(shown.peaks, "known", lambda device: known)
    one, other = (shown.Shown(model, half).text(3.0, 4000, 16, 0.5) for half in (False, True))
    share = 3 * shown.count.flops_per_token(model, 125) * 8000 / 1e9
    assert one.endswith(f"MFU {share:.0%}") and other.endswith(f"MFU {share / 4:.0%}")
