"""Architectures in pairs over seeds, and in blocks of the plain model: against formulas."""

import math

import numpy as np
import pytest
from scipy import stats

from lib.analysis import architecture_pairs as pairs

NOISE = {0: 0.02, 1: -0.01, 2: 0.005, 3: 0.0, 4: -0.015}


def records(**shift):
    """Losses of 4 + noise of the seed - 0.5 ln(blocks), shifted by arm."""
    found = []
    for arm, more in {"plain": 0.0, **shift}.items():
        for depth in (3, 4, 5):
            for seed, noise in NOISE.items():
                loss = 4 + noise - 0.5 * math.log(depth) + more + 0.001 * seed * bool(more)
                found.append({"arm": arm, "blocks": depth, "seed": seed, "loss": loss})
    return found


def test_pairs_take_the_seed_out_and_say_what_was_seen():
    found = records(better=-0.05, same=1e-9)
    plain, better, same = (pairs.values(found, arm, 4) for arm in ("plain", "better", "same"))
    table = pairs.compared({"better": (better, plain), "same": (same, better), "again": (plain, plain)})
    gains = [0.05 - 0.001 * seed for seed in NOISE]
    one = table["better"]
    reach = stats.t.ppf(0.975, 4) * stats.sem(gains)
    assert (one.gain.value, one.gain.low) == pytest.approx((np.mean(gains), np.mean(gains) - reach))
    assert one.verdict.p == pytest.approx(2 * stats.ttest_1samp(gains, 0).pvalue) and one.verdict.pairs == 3
    assert str(one) == "a gain" and str(table["same"]) == "a loss"
    assert str(table["again"]) == "no difference seen, and none above 0"


def test_no_difference_comes_with_its_bound():
    plain = {0: 3.0, 1: 3.1, 2: 3.2}
    arm = {0: 3.01, 1: 3.09, 2: 3.2, 3: 9.0}  # a seed that the rival lacks does not count
    found = pairs.compared({"arm": (arm, plain)})["arm"]
    assert found.gain.n == 3 and found.bound == pytest.approx(max(abs(found.gain.low), found.gain.high))
    assert str(found) == f"no difference seen, and none above {found.bound:.2g}"
    with pytest.raises(ValueError, match=r"seeds=\[0, 1\] were given for an interval"):
        pairs.compared({"arm": ({0: 1.0, 1: 2.0}, plain)})


def test_diverged_trainings_have_no_value():
    assert pairs.values([{"arm": "plain", "blocks": 4, "seed": 0, "loss": None}, *records()[5:6]], "plain", 4) == {
        0: pytest.approx(4.02 - 0.5 * math.log(4))
    }


def test_a_variant_is_worth_so_many_plain_blocks():
    found = records(better=-0.05)
    curve = pairs.curve(found, (3, 4, 5))
    assert curve.at(4.5) == pytest.approx({seed: 4 + noise - 0.5 * math.log(4.5) for seed, noise in NOISE.items()})
    better = pairs.values(found, "better", 4)
    expected = [4 * math.exp((0.05 - 0.001 * seed) / 0.5) for seed in NOISE]
    worth = pairs.worth(curve, better)
    assert (worth.value, worth.n) == (pytest.approx(np.mean(expected)), 5)
    assert pairs.worth(curve, curve.at(3.7)).value == pytest.approx(3.7)


def test_what_makes_no_curve_is_refused():
    with pytest.raises(ValueError, match="1 depths of 'plain'; 2 or more make a curve"):
        pairs.curve(records(), (4,))
    flat = [each | {"loss": 4 + each["blocks"] / 100} for each in records()]
    rising = pairs.curve(flat, (3, 4))
    assert rising.at(4) == pytest.approx(pairs.values(flat, "plain", 4))  # fine for interpolation
    with pytest.raises(ValueError, match="plain loss does not fall with blocks at seed 0"):
        pairs.worth(rising, rising.at(3))
    with pytest.raises(ValueError, match="intervals over seeds need 3"):
        pairs.curve(records(), (4, 6))


def test_equal_time_in_plain_blocks():
    assert pairs.blocks_in(0.0052, {3: 0.004, 4: 0.005, 6: 0.007}) == pytest.approx(4.2)
    with pytest.raises(ValueError, match="took no longer; a busy machine"):
        pairs.blocks_in(1.0, {3: 2.0, 4: 1.5})
    with pytest.raises(ValueError, match="times of 1 depths"):
        pairs.blocks_in(1.0, {3: 2.0})
