"""The verdict at small n: against scipy, against Holm's definition, and its false alarms in simulated A/A pairs."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from statsmodels.stats.multitest import multipletests

from lib.metrics import divergence, paired_tests, verdicts
from tests import tiny

TRIES = 3000
ALARMS = 0.05 + 1.96 * math.sqrt(0.05 * 0.95 / TRIES)  # 5 %, and the binomial error of so many tries


@pytest.mark.parametrize("n", [3, 4, 8, 64])
@pytest.mark.parametrize("noise", ["normal", "heavy"])
def test_equals_are_called_different_in_at_most_5_percent(n, noise):
    generator, seen = np.random.default_rng(n), 0
    for _ in range(TRIES):
        difficulty = generator.normal(3, 2, n)  # of the windows, which both share
        spread = generator.normal if noise == "normal" else lambda _, scale, size: scale * generator.standard_t(3, size)
        first, second = (difficulty + spread(0, 0.1, n) for _ in range(2))
        seen += verdicts.verdict(first - second).seen
    assert seen / TRIES <= ALARMS


@pytest.mark.parametrize("n", [3, 4, 8, 64])
def test_a_table_of_equals_holds_a_false_alarm_in_at_most_5_percent(n):
    generator, wrong, tries = np.random.default_rng(n), 0, 400
    for _ in range(tries):
        table = verdicts.verdicts({rung: generator.normal(0, 1, n) for rung in range(4)})
        wrong += any(each.seen for each in table.values())
    assert wrong / tries <= 0.05 + 1.96 * math.sqrt(0.05 * 0.95 / tries)


def test_the_rule_of_two_standard_errors_is_not_the_verdict():
    """What notebooks used to type calls a difference in nearly a fifth of the cases at n = 4."""
    generator = np.random.default_rng(0)
    draws = generator.normal(0, 1, (TRIES, 4))
    typed = np.abs(draws.mean(1)) > 2 * draws.std(1) / 2
    assert typed.mean() > 0.15 > ALARMS
    assert np.mean([verdicts.verdict(each).seen for each in draws]) <= ALARMS


def test_paired_scores_of_equals_raise_at_most_5_percent_alarms_at_small_n():
    generator = np.random.default_rng(1)
    for n in (3, 4, 8):
        found = [paired_tests.paired(*generator.normal(0, 1, (2, n))) for _ in range(TRIES)]
        assert np.mean([each.seen for each in found]) <= ALARMS and found[0].test == "Student's t"
        assert np.mean([each.low <= 0 <= each.high for each in found]) == pytest.approx(0.95, abs=0.012)


def test_words_follow_the_sign_and_the_p_value():
    clear = np.array([0.9, 1.0, 1.1, 1.05])
    assert str(verdicts.verdict(clear)) == "a gain" and str(verdicts.verdict(-clear)) == "a loss"
    assert verdicts.verdict(clear).p == pytest.approx(scipy.stats.ttest_1samp(clear, 0).pvalue)
    assert str(verdicts.verdict([0.016, -0.003, 0.03, 0.02])) == "no difference seen"
    for nothing in ([], [1.0], [0.0, 0.0, 0.0], [1.0, math.nan, 2.0], [math.inf, 1.0]):
        assert not verdicts.verdict(nothing).seen
    assert verdicts.verdict([1.0, 1.0, 1.0]).seen  # what never varies is no chance


def test_holm_multiplies_the_smallest_p_by_the_number_of_pairs():
    given = {"a": [1.0, 1.1, 0.9], "b": [0.5, 0.2, 0.9], "c": [0.1, -0.2, 0.05]}
    alone = {name: verdicts.verdict(each).p for name, each in given.items()}
    together = verdicts.verdicts(given)
    assert list(together) == list(given) and {each.pairs for each in together.values()} == {3}
    assert together["a"].p == pytest.approx(3 * alone["a"]) and together["b"].p == pytest.approx(2 * alone["b"])
    assert together["c"].p == pytest.approx(max(alone["c"], 2 * alone["b"]))
    many = {place: verdicts.Verdict(1.0, p, 9) for place, p in enumerate(np.random.default_rng(0).random(12) ** 3)}
    theirs = multipletests([each.p for each in many.values()], method="holm")[1]
    assert [each.p for each in verdicts.holm(many).values()] == pytest.approx(list(theirs))
    compared = paired_tests.holm({n: paired_tests.paired([1] * 30, [0] * n + [1] * (30 - n)) for n in (6, 7)})
    assert compared[7].p == pytest.approx(2 * 2 * 0.5**7) and compared[6].p == pytest.approx(2 * 0.5**6)
    assert "Holm of 2" in str(compared[7]) and verdicts.verdicts({}) == {}


def test_divergences_are_paired_window_by_window():
    original, near, far = (tiny.llama(seed=0) for _ in range(3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for model, size in ((near, 0.001), (far, 0.03)):
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    windows = tiny.tokens(6, 24)
    found = [divergence.compare(model, original, windows) for model in (far, near)]
    (gain, verdict) = verdicts.divergences({"far to near": found})["far to near"]
    differences = (found[0].divergence - found[1].divergence).double().mean(1).numpy()
    assert gain == divergence.gain(*found) and str(verdict) == "a gain" and verdict.n == 6
    assert verdict.p == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue)
    with pytest.raises(ValueError, match="same ones"):
        verdicts.divergences({"x": (found[0], divergence.compare(near, original, windows[:3]))})


def test_few_groups_that_differ_give_a_finite_interval():
    second = np.ones(40)
    second[:3] = 0  # of twenty pairs of samples two differ
    found = paired_tests.paired(np.ones(40), second, np.repeat(range(20), 2))
    reach = scipy.stats.t.ppf(0.975, 19) * found.stderr
    assert found.test == "paired bootstrap" and not found.seen
    assert (found.low, found.high) == pytest.approx((found.difference - reach, found.difference + reach))
