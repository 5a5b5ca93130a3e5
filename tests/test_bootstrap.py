"""The bootstrap of numbers that are no means, with the draws of an evaluation: coverage and false alarms, simulated.

Coverage is held to 93 to 97 % in 1000 simulations or more; a false-alarm rate to 5 % and what chance adds to a true
5 % in that many simulations (1.96 standard errors of a binomial share).
"""

import math

import numpy as np
import pytest

from lib.evaluation import comparison, scores
from lib.metrics import intervals, paired_tests
from tests.test_comparison import RIGHT, WRONG, agreement, choices, evaluated
from tests.test_intervals import covered

TRIES = 1000
ALARMS = 0.05 + 1.96 * math.sqrt(0.05 * 0.95 / TRIES)


def f1(counts):
    """2 TP / (2 TP + FP + FN) of the numbers of hits, false alarms, misses and the rest."""
    hits, alarms, misses = map(int, counts[:3])
    return 2 * hits / (2 * hits + alarms + misses)


def f1_of(kinds):
    """What the bootstrap asks: F1 of the samples at `places`, of which `kinds` says what each is."""
    return lambda places: f1(np.bincount(kinds[places], minlength=4))


def area_of(labels, values):
    """AUROC of the samples at `places`; no two values are equal."""
    order = np.argsort(values)
    rank, labels = np.empty(len(order), np.int64), labels[order]
    rank[order] = np.arange(len(order))

    def area(places):
        times = np.bincount(rank[places], minlength=len(rank))
        positive, negative = times * labels, times * ~labels
        return float((positive * (negative.cumsum() - negative / 2)).sum()) / int(positive.sum() * negative.sum())

    return area


@pytest.mark.parametrize(
    ("share", "recall", "precision"), [(0.07, 0.8, 0.9), pytest.param(0.3, 0.7, 0.7, marks=pytest.mark.long)]
)
def test_intervals_of_f1_cover_95_percent(share, recall, precision):
    generator, found = np.random.default_rng(4), []  # 7 % of ToxicChat is toxic
    alarms = share * recall * (1 - precision) / precision
    shares = np.array([share * recall, alarms, share * (1 - recall), 1 - share - alarms])
    for _ in range(TRIES):
        kinds = generator.choice(4, 1000, p=shares)
        found.append(intervals.bootstrap(f1_of(kinds), range(1000), draws=scores.DRAWS, share=True))
    truth = 2 * shares[0] / (2 * shares[0] + shares[1] + shares[2])
    assert 0.93 <= covered([(each.low, each.high) for each in found], truth) <= 0.97


@pytest.mark.parametrize(
    ("share", "apart", "n"), [(0.4, 1.4, 300), pytest.param(0.07, 2.5, 1000, marks=pytest.mark.long)]
)
def test_intervals_of_an_area_under_the_curve_cover_95_percent(share, apart, n):
    generator, found = np.random.default_rng(5), []
    for _ in range(TRIES):
        labels = generator.random(n) < share
        area = area_of(labels, generator.normal(labels * apart, 1.0))
        found.append(intervals.bootstrap(area, range(n), draws=scores.DRAWS, share=True))
    truth = 0.5 * (1 + math.erf(apart / 2))  # P(N(d, 1) > N(0, 1)) = Phi(d / sqrt(2))
    assert 0.93 <= covered([(each.low, each.high) for each in found], truth) <= 0.97
    assert found[-1] == intervals.bootstrap(area, range(n), draws=scores.DRAWS, share=True)  # seeded
    assert found[-1].value == pytest.approx(area(np.arange(n))) and found[-1].n == n


def both(generator, n, share, recall, alarms):
    """0/1 labels, and what two equally good models flag; they agree by more than chance."""
    labels, draws = generator.random(n) < share, generator.random((2, n))
    draws[1] = np.where(generator.random(n) < 0.6, draws[0], draws[1])
    return labels, *(draws < np.where(labels, recall, alarms))


def kinds_of(labels, flagged):
    return np.where(flagged, np.where(labels, 0, 1), np.where(labels, 2, 3))


@pytest.mark.long
def test_numbers_of_all_samples_raise_no_more_than_5_percent_false_alarms():
    generator, seen, hits = np.random.default_rng(6), [], []
    for _ in range(TRIES):
        labels, *flagged = both(generator, 400, 0.07, 0.65, 0.03)
        first, second = (f1_of(kinds_of(labels, each)) for each in flagged)
        found, p = paired_tests.whole(lambda places, a=first, b=second: b(places) - a(places), range(400))
        seen.append(p < paired_tests.LEVEL and not found.low <= 0 <= found.high)
        hits.append(found.low <= 0 <= found.high)
    assert np.mean(seen) <= ALARMS and 0.93 <= np.mean(hits) <= 0.97


def test_a_comparison_of_such_numbers_is_the_simulated_one():
    task = choices(60, metrics=("all", "acc"), aggregate={"all": agreement})
    systems = {"a": evaluated(task, [RIGHT] * 60), "b": evaluated(task, [RIGHT, RIGHT, WRONG] * 20)}
    found = comparison.against(systems, "all", task)["b"].comparison
    logs = np.array([[row.answers[0].logprob for row in system.rows] for system in systems.values()])
    groups = [row.group for row in systems["a"].rows]
    same, p = paired_tests.whole(lambda places: np.diff(np.exp(logs[:, places].mean(1)))[0], groups)
    assert (found.low, found.high, found.p) == pytest.approx((same.low, same.high, p))


def test_groups_of_right_or_wrong_scores_raise_no_more_than_5_percent_false_alarms():
    generator, seen, hits = np.random.default_rng(12), [], []
    labels = np.repeat(range(40), 12)
    for _ in range(TRIES):
        easy = generator.beta(1.5, 1.5, 40)[labels]
        own = np.clip(easy + generator.normal(0, 0.15, (2, 40))[:, labels], 0, 1)  # what each model knows of a group
        alike = generator.random(len(labels)) < 0.6
        draws = generator.random((2, len(labels)))
        first, second = np.where(alike, draws[0] < easy, draws < own).astype(float)
        found = paired_tests.paired(first, second, labels)
        seen.append(found.seen)
        hits.append(found.low <= 0 <= found.high)
        assert found.test == "paired bootstrap"
    assert np.mean(seen) <= ALARMS and 0.93 <= np.mean(hits) <= 0.97


def test_few_samples_with_much_weight_widen_the_interval():
    generator = np.random.default_rng(8)
    labels = np.arange(300) < 6
    area = area_of(labels, generator.normal(labels * 1.5, 1.0))
    found = intervals.bootstrap(area, range(300), share=True)
    near = found.value * (1 - found.value)
    reach = math.log(found.high / (1 - found.high)) - math.log(found.value / (1 - found.value))
    assert reach > 2.2 * found.stderr / near  # as Student's t with few degrees of freedom, not 1.96
    assert 0 < found.low < found.value < found.high < 1


def test_numbers_without_spread_or_outside_0_to_1():
    same = intervals.bootstrap(lambda places: 1.0, range(50), share=True)
    assert (same.low, same.high) == intervals.wilson(1.0, 50) and same.stderr == 0
    values = np.random.default_rng(9).normal(0.9, 1, 200)
    found = (
        intervals.bootstrap(lambda places: values[places].mean(), range(200), share=each) for each in (True, False)
    )
    assert next(found) == next(found)  # percentiles, where odds do not exist
    assert intervals.bootstrap(lambda places: 0.0, range(9)).high == 0


def test_groups_are_drawn_whole():
    groups, drawn = ["b", "a", "b", "c", "a", "a"], []
    intervals.bootstrap(lambda places: drawn.append(sorted(places)) or 0.5, groups, draws=60, share=True)
    for places in drawn:
        counts = np.bincount(places, minlength=6)
        assert counts[0] == counts[2] and counts[1] == counts[4] == counts[5]
    assert [len(each) for each in drawn[-3:]] == [3, 4, 5]  # the last three leave one group out
